"""One update, and one batch of evaluation: pure functions, jitted below."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet.data.augment.crop import (
  MIXING,
  NETWORK,
  example_keys,
  step_key,
)
from resnet.training import compiler, guards, losses, metrics
from resnet.training.accumulation import mean_over_parts, split_batch
from resnet.training.sharding import DataSharding
from resnet.training.state import TrainState, update_ema
from resnet.training.task import Task

# 'image' uint8 [B, H, W, C], 'label' int32 [B], 'mask' bool [B]; and what
# `augment_batch` makes of it.
Batch = Mapping[str, jax.Array]


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  task: Task,
  sharding: DataSharding | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update, left out where the loss or a gradient is not finite.

  With a `sharding` whose axis `fsdp` is larger than 1, the parameters are
  gathered for the gradients, and these split before the update.

  Returns:
    The new state, and metrics as scalars on the device: the sums since the
    last log line (see `training.metrics`), 'learning_rate', 'skipped_steps'
    and 'skipped_in_row'.
  """
  whole = state
  if sharding:
    whole = state.replace(params=sharding.gather(state.params))
  batch = augment_batch(batch, state.step, task=task, sharding=sharding)
  grads, batch_stats, sums = _gradients_in_parts(whole, batch, task)
  if task.sam_rho is not None:
    # Statistics and metrics stay those of the weights themselves. Where the
    # first gradients are not finite, these are not either.
    grads = uphill_gradients(whole, grads, batch, task.sam_rho, task=task)
  if sharding:
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
  if sharding:
    new_state = sharding.split(new_state)
  return new_state, {
    **sums,
    'learning_rate': jnp.asarray(task.schedule(state.step), jnp.float32),
    'skipped_steps': new_state.skipped_steps,
    'skipped_in_row': new_state.skipped_in_row,
  }


def augment_batch(
  batch: Batch,
  step: jax.Array,
  *,
  task: Task,
  sharding: DataSharding | None = None,
) -> Batch:
  """Returns the batch as the network sees it; random by seed, step and row.

  Images that were erased or mixed are float32, still in units of pixels. A
  batch that was mixed has 'target', the shares of the classes, float32 [B, K],
  and 'label' is then the class with the largest share.
  """
  images = batch['image']
  keys = example_keys(task.seed, step, len(batch['label']))
  if task.device_crop is not None:
    images = task.device_crop(images, keys)
  images = task.augmentation(images, keys, mean=task.mean, std=task.std)
  mixing = task.augmentation.mixing
  if mixing is None:
    return {**batch, 'image': images}
  mixed = mixing(
    images,
    batch['label'],
    task.model.num_classes,  # pyright: ignore[reportAttributeAccessIssue]
    step_key(task.seed, step, MIXING),
    sharding.replicate if sharding else lambda x: x,
  )
  return {
    **batch,
    'image': mixed.images,
    'label': mixed.main_labels,
    'target': mixed.targets,
  }


def targets(batch: Batch) -> jax.Array:
  """Returns what the loss compares with: shares of the classes, or labels."""
  return batch['target'] if 'target' in batch else batch['label']


def network_rngs(
  task: Task, step: jax.Array, part: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Returns the keys of drop path and dropout, by seed, step and part."""
  key = step_key(task.seed, step, NETWORK)
  return {'dropout': key if part is None else jax.random.fold_in(key, part)}


def gradients(
  state: TrainState, batch: Batch, *, task: Task
) -> tuple[Any, Any, metrics.Sums]:
  """Returns gradients of the mean loss, new batch_stats, sums of metrics."""

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
  """Returns the gradients at weights where the loss is higher.

  These are w + rho * g / |g|, of the weights w with the gradients g, all of
  them together: sharpness-aware minimization, Foret et al. 2021, Algorithm 1.
  The paper takes g per device; here it is that of the whole batch.
  """
  scale = rho / jnp.maximum(optax.tree.norm(grads), 1e-12)
  params = jax.tree.map(lambda w, g: w + scale * g, state.params, grads)
  return _gradients_in_parts(state.replace(params=params), batch, task)[0]


def _gradients_in_parts(
  state: TrainState, batch: Batch, task: Task
) -> tuple[Any, Any, metrics.Sums]:
  """As `gradients`, with the memory of `accumulation_steps` parts."""
  group_size = getattr(task.model, 'bn_group_size', None)
  parts = split_batch(batch, task.accumulation_steps, group_size)
  if task.accumulation_steps == 1:
    return gradients(state, parts, task=task)
  # Each part starts from the same statistics: the mean over parts of the
  # updated ones is what the whole batch would have given.
  results = functools.partial(gradients, state, task=task)
  grads, batch_stats, sums = mean_over_parts(
    results, parts, unroll=task.unroll_parts
  )
  sums = jax.tree.map(lambda x: x * task.accumulation_steps, sums)
  return grads, batch_stats, sums


def eval_step(
  variables: Any,
  sums: metrics.Sums,
  batch: Batch,
  *,
  task: Task,
  sharding: DataSharding | None = None,
) -> metrics.Sums:
  """Adds a batch to the sums; the loss is plain cross entropy."""
  if sharding:
    variables = sharding.gather(variables)
  images = task.normalize(batch['image'])
  logits: Any = task.model.apply(variables, images, train=False)
  losses_ = losses.cross_entropy(logits, batch['label'])
  return metrics.add(
    sums, metrics.batch_sums(losses_, logits, batch['label'], batch['mask'])
  )


@dataclasses.dataclass(frozen=True)
class JittedSteps:
  """The compiled functions of a run. The first argument's memory is re-used.

  Attributes:
    train: (state, batch) -> (state, metrics); the state is donated.
    evaluate: (variables, sums, batch) -> sums; the sums are donated.
  """

  train: Any
  evaluate: Any


def jit_steps(task: Task, sharding: DataSharding) -> JittedSteps:
  """Jits both steps: batches split over the mesh, the state as it lies."""
  replicated, batch = sharding.replicated, sharding.batch
  # None: as the argument lies, and as `DataSharding.split` says.
  state = replicated if sharding.fsdp == 1 else None
  options = compiler.options(sharding.backend)
  return JittedSteps(
    train=jax.jit(
      functools.partial(train_step, task=task, sharding=sharding),
      in_shardings=(state, batch),
      out_shardings=(state, replicated),
      donate_argnums=0,
      compiler_options=options,
    ),
    evaluate=jax.jit(
      functools.partial(eval_step, task=task, sharding=sharding),
      in_shardings=(state, replicated, batch),
      out_shardings=replicated,
      donate_argnums=1,
      compiler_options=options,
    ),
  )
