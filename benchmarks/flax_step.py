"""A straightforward training step in Flax, for `--against=flax`.

It has the variables, loss, optimizer and normalisation of our step, but no
guard against numbers that are not finite.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet.errors import InputError
from resnet.models import layers
from resnet.models.blocks import BasicBlock, BottleneckBlock

_Conv = functools.partial(nn.Conv, use_bias=False)
_BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def _conv_bn(x, filters, size, strides=1, *, names, train):
  conv, norm = ({'name': name, 'dtype': x.dtype} for name in names)
  padding = (size - 1) // 2
  x = _Conv(filters, (size, size), strides, padding=padding, **conv)(x)
  return _BatchNorm(use_running_average=not train, **norm)(x)


class Block(nn.Module):
  """A basic block or a bottleneck (v1.5) with shortcut A or B."""

  filters: int
  strides: int
  bottleneck: bool
  shortcut: str

  @nn.compact
  def __call__(self, x, *, train):
    filters, strides = self.filters, self.strides
    convs = [(filters, 3, strides), (filters, 3, 1)]
    if self.bottleneck:
      convs = [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]
    y = x
    for i, conv in enumerate(convs, start=1):
      y = _conv_bn(y, *conv, names=(f'conv{i}', f'bn{i}'), train=train)
      if i < len(convs):
        y = nn.relu(y)
    if x.shape != y.shape and self.shortcut == 'A':
      x = x[:, ::strides, ::strides]
      extra = y.shape[-1] - x.shape[-1]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))
    elif x.shape != y.shape:
      names = ('shortcut_conv', 'shortcut_bn')
      x = _conv_bn(x, y.shape[-1], 1, strides, names=names, train=train)
    return nn.relu(x + y)


class Network(nn.Module):
  """A residual network for ImageNet or CIFAR with the sizes of `ours`."""

  ours: Any

  @nn.compact
  def __call__(self, x, *, train):
    ours = self.ours
    names, filters = ('stem_conv', 'stem_bn'), ours.num_filters
    x = x.astype(ours.dtype)
    size, strides = (7, 2) if ours.stem_pool else (3, 1)
    x = nn.relu(_conv_bn(x, filters, size, strides, names=names, train=train))
    if ours.stem_pool:
      pads = ((1, 1), (1, 1))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=pads)  # pyright: ignore[reportArgumentType]
    for i, num_blocks in enumerate(ours.stage_sizes, start=1):
      for j in range(1, num_blocks + 1):
        x = Block(
          filters=filters * 2 ** (i - 1),
          strides=2 if i > 1 and j == 1 else 1,
          bottleneck=ours.block_cls is BottleneckBlock,
          shortcut=ours.shortcut,
          name=f'stage{i}_block{j}',
        )(x, train=train)
    x = jnp.mean(x, axis=(1, 2)).astype(jnp.float32)
    return nn.Dense(ours.num_classes, dtype=jnp.float32, name='head')(x)


def create_network(ours):
  """Returns a Flax network with the sizes and variables of one of ours."""
  if (
    getattr(ours, 'block_cls', None) not in (BasicBlock, BottleneckBlock)
    or ours.block_options
    or ours.stem not in (layers.imagenet_stem, layers.cifar_stem)
    or ours.shortcut not in ('A', 'B')
  ):
    raise InputError(
      '--against=flax does not have this network: choose resnet18 to resnet200'
      ' or cifar_resnet8 to cifar_resnet110.'
    )
  return Network(ours)


def train_step(state, batch, *, model, task):
  """Updates (params, batch_stats, opt_state); returns them and metrics."""
  params, batch_stats, opt_state = state

  def loss_fn(params):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      task.normalize(batch['image']),
      train=True,
      mutable=['batch_stats'],
    )
    loss = jnp.mean(task.loss_fn(logits, batch['label']))
    return loss, (updates['batch_stats'], logits)

  (loss, (batch_stats, logits)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(params)
  updates, opt_state = task.tx.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)
  hits = jnp.argmax(logits, -1) == batch['label']
  return (params, batch_stats, opt_state), {'loss': loss, 'top1': hits.mean()}


def eval_step(variables, batch, *, model, task):
  """Returns the sum of losses and the number of hits of a batch."""
  logits = model.apply(variables, task.normalize(batch['image']), train=False)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  )
  hits = jnp.argmax(logits, -1) == batch['label']
  return {'loss': losses.sum(), 'top1': hits.sum()}


def jit(run, subject):
  """Returns the jitted 'step' (donates its state) or 'eval' of a run."""
  step, donated = (eval_step, ()) if subject == 'eval' else (train_step, 0)
  model = create_network(run.task.model)
  return jax.jit(
    functools.partial(step, model=model, task=run.task),
    in_shardings=(run.sharding.replicated, run.sharding.batch),
    out_shardings=run.sharding.replicated,
    donate_argnums=donated,
  )
