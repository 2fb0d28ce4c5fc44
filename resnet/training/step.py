"""The training step and the evaluation step: pure functions, jitted below."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet.data.augment.crop import MIXING, NETWORK, example_keys, step_key
from resnet.training import compiler, guards, losses, metrics
from resnet.training.accumulation import mean_over_micro_batches, split_batch
from resnet.training.sharding import DataSharding
from resnet.training.state import TrainState, update_ema
from resnet.training.task import Task

# 'image' uint8 [B, H, W, C], 'label' int32 [B], 'mask' bool [B]; after
# `augment_batch`, 'image' may be float32 and there may be a 'target'. If images
# are kept on the devices: 'index' int32 [B] and 'cache', an `ImageCache`.
Batch = Mapping[str, Any]


def train_step(
  state: TrainState, batch: Batch, *, task: Task, sharding: DataSharding
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes one update, or skips it if the loss or a gradient is not finite.

  If `sharding` splits the state, the parameters are gathered to compute the
  gradients, and the gradients are split before the update.

  Returns:
    The new state, and metrics as scalars on the device: the sums since the
    last log line (see `training.metrics`), 'learning_rate', 'skipped_steps'
    and 'skipped_in_row'.
  """
  whole = state.replace(params=sharding.gather(state.params))
  batch = augment_batch(batch, state.step, task=task, sharding=sharding)
  grads, batch_stats, sums = _accumulated_gradients(whole, batch, task)
  if task.sam_rho is not None:
    # Keep the statistics and metrics of the original weights. If the first
    # gradients are not finite, neither are the new ones.
    grads = uphill_gradients(whole, grads, batch, task.sam_rho, task=task)
  grads = sharding.split(grads)
  is_good = guards.all_finite((grads, batch_stats, sums['loss']))
  updates, opt_state = task.tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  choose = functools.partial(guards.choose, is_good)
  starts_interval = state.step % task.log_every_steps == 0
  sums = jax.tree.map(
    lambda old, new: jnp.where(starts_interval, new, old + new),
    state.sums,
    choose(sums, jax.tree.map(jnp.zeros_like, sums)),
  )
  new_state = TrainState(
    step=state.step + 1,
    params=choose(params, state.params),
    batch_stats=choose(batch_stats, state.batch_stats),
    opt_state=choose(opt_state, state.opt_state),
    sums=sums,
    skipped_steps=state.skipped_steps + jnp.where(is_good, 0, 1),
    skipped_in_row=jnp.where(is_good, 0, state.skipped_in_row + 1),
    ema=state.ema,
  )
  if task.ema_decay is not None:
    new_state = update_ema(new_state, task.ema_decay, task.ema_every_steps)
  new_state = sharding.split(new_state)
  return new_state, {
    **sums,
    'learning_rate': jnp.asarray(task.schedule(state.step), jnp.float32),
    'skipped_steps': new_state.skipped_steps,
    'skipped_in_row': new_state.skipped_in_row,
  }


def train_steps(
  state: TrainState, batch: Batch, *, task: Task, sharding: DataSharding
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes an update with each column of 'index', int32 [B, k].

  Returns the last `train_step`'s results, but 'skipped_in_row' of all, int32
  [k].
  """

  def update(state: TrainState, index: jax.Array) -> Any:
    one = {**batch, 'index': index}
    return train_step(state, one, task=task, sharding=sharding)

  state, metrics = jax.lax.scan(update, state, batch['index'].T)
  last = {name: values[-1] for name, values in metrics.items()}
  return state, {**last, 'skipped_in_row': metrics['skipped_in_row']}


def augment_batch(
  batch: Batch, step: jax.Array, *, task: Task, sharding: DataSharding
) -> Batch:
  """Crops, augments and mixes a batch, with keys from seed, step and row.

  Erased or mixed images are float32, still in units of uint8 pixels. A mixed
  batch has a 'target', class probabilities, float32 [B, K], and its 'label' is
  the most probable class.
  """
  batch = look_up(batch)
  images = batch['image']
  keys = example_keys(task.seed, step, len(batch['label']))
  if task.device_crop is not None:
    images = task.device_crop(images, keys)
  images = task.augmentation(images, keys, mean=task.mean, std=task.std)
  batch = {**batch, 'image': images}
  if (mixing := task.augmentation.mixing) is None:
    return batch
  return batch | mixing(
    images,
    batch['label'],
    task.model.num_classes,  # pyright: ignore[reportAttributeAccessIssue]
    step_key(task.seed, step, MIXING),
    sharding.replicate,
  )


def look_up(batch: Batch) -> Batch:
  """Takes the images of a batch from its cache, if it has one."""
  return batch['cache'].take(batch['index']) if 'cache' in batch else batch


def targets(batch: Batch) -> jax.Array:
  """Returns the targets of the loss: class probabilities or labels."""
  return batch.get('target', batch['label'])


def network_rngs(
  task: Task, step: jax.Array, part: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Returns the network's keys for a seed, step and micro-batch `part`."""
  key = step_key(task.seed, step, NETWORK)
  return {'dropout': key if part is None else jax.random.fold_in(key, part)}


def gradients(
  state: TrainState, batch: Batch, *, task: Task
) -> tuple[Any, Any, metrics.Sums]:
  """Returns gradients of the mean loss, new `batch_stats` and metric sums."""

  def mean_loss(params):
    logits, updates = task.model.apply(
      {'params': params, 'batch_stats': state.batch_stats},
      task.normalize(batch['image']),
      train=True,
      mutable=['batch_stats'],
      rngs=network_rngs(task, state.step, batch.get('part')),
    )
    losses_ = task.loss_fn(logits, targets(batch))
    sums = metrics.batch_sums(losses_, logits, batch['label'], batch['mask'])
    return jnp.mean(losses_), (updates['batch_stats'], sums)

  grads, (batch_stats, sums) = jax.grad(mean_loss, has_aux=True)(state.params)
  return grads, batch_stats, sums


def uphill_gradients(
  state: TrainState, grads: Any, batch: Batch, rho: float, *, task: Task
) -> Any:
  """Returns the gradients at w + rho * g / |g|, where the loss is higher.

  w are the weights, g their gradients, and |g| is the norm of all gradients
  together. This is sharpness-aware minimization, Algorithm 1 of Foret et al.
  2021. The paper uses the g of each device, this code the g of the whole batch.
  """
  scale = rho / jnp.maximum(optax.tree.norm(grads), 1e-12)
  params = jax.tree.map(lambda w, g: w + scale * g, state.params, grads)
  return _accumulated_gradients(state.replace(params=params), batch, task)[0]


def _accumulated_gradients(
  state: TrainState, batch: Batch, task: Task
) -> tuple[Any, Any, metrics.Sums]:
  """Computes `gradients` one micro-batch at a time, to save memory."""
  if task.accumulation_steps == 1:
    return gradients(state, batch, task=task)
  group_size = getattr(task.model, 'bn_group_size', None)
  # Each micro-batch updates the same running statistics, so the mean of the
  # results equals one update with the mean statistics of the micro-batches.
  grads, batch_stats, sums = mean_over_micro_batches(
    functools.partial(gradients, state, task=task),
    split_batch(batch, task.accumulation_steps, group_size),
    unroll=task.unroll_micro_batches,
  )
  sums = jax.tree.map(lambda x: x * task.accumulation_steps, sums)
  return grads, batch_stats, sums


def eval_step(
  variables: Any,
  sums: metrics.Sums,
  batch: Batch,
  *,
  task: Task,
  sharding: DataSharding,
) -> metrics.Sums:
  """Adds the metrics of a batch to the sums; the loss is cross entropy.

  The sums may include a 'confusion' matrix; see `metrics.confusion`.
  """
  variables, batch = sharding.gather(variables), look_up(batch)
  images = task.normalize(batch['image'])
  logits: Any = task.model.apply(variables, images, train=False)
  losses_ = losses.cross_entropy(logits, batch['label'])
  more = metrics.batch_sums(losses_, logits, batch['label'], batch['mask'])
  if 'confusion' in sums:
    more['confusion'] = metrics.confusion(logits, batch['label'], batch['mask'])
  return jax.tree.map(jnp.add, sums, more)


@dataclasses.dataclass(frozen=True)
class JittedSteps:
  """The jitted functions of a run.

  Attributes:
    train: (state, batch) -> (state, metrics); donates the state.
    train_many: the same for `train_steps`.
    evaluate: (variables, sums, batch) -> sums; donates the sums.
  """

  train: Any
  train_many: Any
  evaluate: Any

  def compile_call(self, state: TrainState, batch: Batch, count: int) -> Any:
    """Returns the program of `count` updates; if several, it is compiled."""
    if count == 1:
      return self.train
    shape = (len(batch['index']), count)
    batch = {**batch, 'index': jax.ShapeDtypeStruct(shape, jnp.int32)}
    return self.train_many.lower(state, batch).compile()


def jit_steps(task: Task, sharding: DataSharding) -> JittedSteps:
  """Jits both steps, with batches split over the mesh."""
  replicated, batch = sharding.replicated, sharding.batch
  if task.is_cached:
    batch = {'index': batch, 'cache': replicated}
  # With FSDP, None keeps the inputs' shardings and those that `split` sets.
  state = replicated if sharding.fsdp == 1 else None
  options = compiler.options(sharding.backend)
  train, train_many = (
    jax.jit(
      functools.partial(function, task=task, sharding=sharding),
      in_shardings=(state, batch),
      out_shardings=(state, replicated),
      donate_argnums=0,
      compiler_options=options,
    )
    for function in (train_step, train_steps)
  )
  return JittedSteps(
    train=train,
    train_many=train_many,
    evaluate=jax.jit(
      functools.partial(eval_step, task=task, sharding=sharding),
      in_shardings=(state, replicated, batch),
      out_shardings=replicated,
      donate_argnums=1,
      compiler_options=options,
    ),
  )
