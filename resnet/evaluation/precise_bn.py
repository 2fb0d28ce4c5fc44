"""Precise BN: recomputes batch statistics with the weights fixed.

Running statistics average over few batches, and over weights that changed in
the meantime. This module computes them again from augmented training images
(Wu and Johnson 2021, "Rethinking 'batch' in BatchNorm", section 3).
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.output import ProgressBar
from resnet.training import compiler
from resnet.training.accumulation import split_batch
from resnet.training.step import Batch, augment_batch, network_rngs

Variables = Mapping[str, Any]


def check(run: Experiment, at_least: int) -> None:
  """Raises an InputError if there are too few images or no trained norms."""
  flag, most = f'--precise_bn={at_least}', len(run.train_reader.source)
  if not 0 < at_least <= most:
    raise InputError(f'{flag} is not in 1 .. {most} (training images).')
  shapes = run.abstract_state().batch_stats
  if not jax.tree.leaves(shapes) or getattr(run.task.model, 'frozen_bn', False):
    text = f'{run.config["model.name"]} has no batch norms that are trained'
    raise InputError(f'{flag}: {text}. Remove the flag.')


def num_images(run: Experiment, at_least: int) -> int:
  """Rounds a number of images up to whole batches."""
  batch_size = run.train_reader.batch_size
  return math.ceil(at_least / batch_size) * batch_size


def recompute(
  run: Experiment, variables: Variables, at_least: int
) -> Variables:
  """Returns the variables with batch statistics of the first training batches.

  Training normalises groups of `model.bn_group_size` images, or micro-batches.
  If m and v are a group's mean and biased variance, and E averages over groups,

    mean = E[m],  var = E[v + m * m] - E[m] ** 2

  This is the variance over all images, not the mean of the group variances.
  Frozen norms keep their statistics. Images are augmented as in training;
  `at_least`, their number, is rounded up to whole batches.
  """
  # With a size schedule, use the size at the end of the run.
  run = run.at_last_size()
  reader = run.train_reader
  warnings = DataWarnings(reader.max_bad_images)
  count = num_images(run, at_least) // reader.batch_size
  step = jax.jit(
    functools.partial(_statistics, run=run),
    out_shardings=run.sharding.replicated,
    compiler_options=compiler.options(run.sharding.backend),
  )
  batches, total = run.load(reader, warnings, num_steps=count), None
  with ProgressBar('measured', count * reader.batch_size) as bar:
    for i, batch in enumerate(batches):
      found = jax.device_get(step(variables, batch, np.int32(i)))
      # float32 has too few digits for sums of squares.
      found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
      found = _map_norms(lambda var, mean: var + mean**2, found)
      total = found if total is None else jax.tree.map(np.add, total, found)
      bar.update(reader.batch_size)
  for line in warnings.take():
    print(line)
  means = jax.tree.map(lambda x: x / count, total)
  batch_stats = jax.tree.map(
    lambda new, old: jax.device_put(new.astype(np.float32), old.sharding),
    _map_norms(lambda var, mean: np.maximum(var - mean**2, 0.0), means),
    variables['batch_stats'],
  )
  return {**variables, 'batch_stats': batch_stats}


def _statistics(
  variables: Variables, batch: Batch, step: jax.Array, *, run: Experiment
) -> Any:
  """Returns the 'batch_stats' of one batch: mean and variance of each norm."""
  task, variables = run.task, run.sharding.gather(variables)
  group_size = getattr(task.model, 'bn_group_size', None)
  batch = augment_batch(batch, step, task=task, sharding=run.sharding)
  parts = split_batch(batch, task.accumulation_steps, group_size)
  images = parts['image']
  if task.accumulation_steps == 1:
    images = images[None]
  size = group_size or images.shape[1]
  # [micro-batches, groups, images of a group, H, W, C]
  groups = images.reshape(len(images), -1, size, *images.shape[2:])
  numbers = jnp.arange(groups.shape[0] * groups.shape[1], dtype=jnp.int32)
  numbers = numbers.reshape(groups.shape[:2])
  # With momentum 0, the new statistics are exactly those of the group.
  model = task.model.clone(bn_group_size=None, bn_momentum=0.0)

  def group_statistics(images: jax.Array, number: jax.Array) -> Any:
    _, updates = model.apply(
      variables,
      task.normalize(images),
      train=True,
      mutable=['batch_stats'],
      rngs=network_rngs(task, step, number),
    )
    return updates['batch_stats']

  # As in training, process one micro-batch at a time to save memory.
  statistics = jax.vmap(group_statistics)
  found = jax.lax.map(lambda part: statistics(*part), (groups, numbers))
  found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
  return _map_norms(  # Merge groups of equal size, [groups, C].
    lambda var, mean: jnp.mean(var, axis=0) + jnp.var(mean, axis=0),
    found,
    mean_of=lambda mean: jnp.mean(mean, axis=0),
  )


def _map_norms(
  var_of: Any, batch_stats: Any, mean_of: Any = lambda mean: mean
) -> Any:
  """Applies var_of(var, mean) and mean_of(mean) to the norms' statistics."""

  def change(norm: Any) -> Any:
    mean, var = norm['mean'], norm['var']
    return {'mean': mean_of(mean), 'var': var_of(var, mean)}

  return jax.tree.map(change, batch_stats, is_leaf=lambda x: 'mean' in x)
