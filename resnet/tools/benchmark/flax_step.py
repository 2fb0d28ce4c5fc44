"""A straightforward step in Flax, to compare with: `--against=flax`.

What one writes first: `nn.Conv`, `nn.BatchNorm`, `jax.value_and_grad`, an Optax
update. It has our networks' variables, name by name, and their loss, optimizer
and normalisation; no guard against numbers that are not finite, no sums of
metrics.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet.errors import InputError
from resnet.models import create_model
from resnet.models.blocks import BasicBlock, BottleneckBlock


def _conv_bn(block, x, filters, size, strides=1, *, names, train):
  conv, norm = names
  x = nn.Conv(
    filters,
    (size, size),
    strides,
    padding=(size - 1) // 2,
    use_bias=False,
    dtype=block.dtype,
    name=conv,
  )(x)
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=block.dtype,
    name=norm,
  )(x)


class Block(nn.Module):
  """A basic block or a bottleneck (v1.5), with shortcut A or B."""

  filters: int
  strides: int
  bottleneck: bool
  shortcut: str
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train):
    filters, strides = self.filters, self.strides
    layers = [(filters, 3, strides), (filters, 3, 1)]
    if self.bottleneck:
      layers = [(filters, 1, 1), (filters, 3, strides), (4 * filters, 1, 1)]
    y = x
    for i, layer in enumerate(layers, start=1):
      y = _conv_bn(self, y, *layer, names=(f'conv{i}', f'bn{i}'), train=train)
      if i < len(layers):
        y = nn.relu(y)
    if x.shape != y.shape and self.shortcut == 'A':
      x = x[:, ::strides, ::strides]
      extra = y.shape[-1] - x.shape[-1]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))
    elif x.shape != y.shape:
      names = ('shortcut_conv', 'shortcut_bn')
      x = _conv_bn(self, x, layers[-1][0], 1, strides, names=names, train=train)
    return nn.relu(x + y)


class Network(nn.Module):
  """A residual network for ImageNet, or of CIFAR size."""

  stage_sizes: Any
  bottleneck: bool
  cifar: bool
  num_classes: int
  dtype: Any

  @nn.compact
  def __call__(self, x, *, train):
    names, filters = ('stem_conv', 'stem_bn'), 16 if self.cifar else 64
    x = x.astype(self.dtype)
    size, strides = (3, 1) if self.cifar else (7, 2)
    x = _conv_bn(self, x, filters, size, strides, names=names, train=train)
    x = nn.relu(x)
    if not self.cifar:
      pads = ((1, 1), (1, 1))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=pads)  # pyright: ignore[reportArgumentType]
    for i, num_blocks in enumerate(self.stage_sizes, start=1):
      for j in range(1, num_blocks + 1):
        x = Block(
          filters=filters * 2 ** (i - 1),
          strides=2 if i > 1 and j == 1 else 1,
          bottleneck=self.bottleneck,
          shortcut='A' if self.cifar else 'B',
          dtype=self.dtype,
          name=f'stage{i}_block{j}',
        )(x, train=train)
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(self.num_classes, dtype=jnp.float32, name='head')(
      x.astype(jnp.float32)
    )


def create_network(name, *, num_classes, dtype):
  """Returns the network of that name, with the variables of ours.

  Raises:
    InputError: it is none of the plain residual networks.
  """
  ours = create_model(name)
  block_cls, shortcut = (
    getattr(ours, field, None) for field in ('block_cls', 'shortcut')
  )
  if (
    block_cls not in (BasicBlock, BottleneckBlock)
    or (shortcut == 'A') != name.startswith('cifar')
    or shortcut not in ('A', 'B')
  ):
    raise InputError(
      f'--against=flax has no {name}: take resnet18 to resnet200, or'
      ' cifar_resnet8 to cifar_resnet110.'
    )
  return Network(
    stage_sizes=ours.stage_sizes,
    bottleneck=block_cls is BottleneckBlock,
    cifar=shortcut == 'A',
    num_classes=num_classes,
    dtype=dtype,
  )


def train_step(state, batch, *, model, task):
  """(params, batch_stats, opt_state), batch -> the same, updated; metrics."""
  params, batch_stats, opt_state = state

  def loss_fn(params):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      task.normalize(batch['image']),
      train=True,
      mutable=['batch_stats'],
    )
    losses = task.loss_fn(logits, batch['label'])
    return jnp.mean(losses), (updates['batch_stats'], logits)

  (loss, (batch_stats, logits)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(params)
  updates, opt_state = task.tx.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)
  hits = jnp.argmax(logits, -1) == batch['label']
  return (params, batch_stats, opt_state), {
    'loss': loss,
    'top1': jnp.mean(hits.astype(jnp.float32)),
  }


def eval_step(variables, batch, *, model, task):
  """Returns loss and hits of a batch."""
  logits = model.apply(variables, task.normalize(batch['image']), train=False)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  )
  hits = jnp.argmax(logits, -1) == batch['label']
  return {'loss': jnp.sum(losses), 'top1': jnp.sum(hits.astype(jnp.float32))}


def jit(run, subject):
  """Returns the jitted step of a run: 'step' (donates its state) or 'eval'."""
  network = create_network(
    run.config['model.name'],
    num_classes=run.train_reader.num_classes,
    dtype=run.task.model.dtype,
  )
  replicated, batch = run.sharding.replicated, run.sharding.batch
  is_eval = subject == 'eval'
  return jax.jit(
    functools.partial(
      eval_step if is_eval else train_step, model=network, task=run.task
    ),
    in_shardings=(replicated, batch),
    out_shardings=replicated,
    donate_argnums=() if is_eval else 0,
  )
