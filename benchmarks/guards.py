"""Measures what the guards of a run add to a step.

  PYTHONPATH=. python benchmarks/guards.py

Times the training step of ResNet-20 (CIFAR, batch 128) and of ResNet-50 (64
pixels, batch 16) with the guards of the step and of the loop, in turn with the
bare step, which does not check its update, read back metrics or use a watchdog.
Prints the median ratio. benchmarks/checkpoints.py measures saves.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np

from configs import fake
from resnet import experiment
from resnet.run.stopping import Watchdog
from resnet.training import guards
from resnet.training.sharding import create_sharding
from resnet.training.state import create_state
from resnet.training.step import train_step


def _task(name):
  config = fake.get_config()
  config.model.name = name
  config.log_every_steps = 100
  return experiment.resolve(config).task


def _state(task, size):
  create = functools.partial(
    create_state, task=task, image_shape=(size, size, 3)
  )
  return jax.jit(create)(jax.random.key(0))


def _batch(size, batch_size):
  rng = np.random.default_rng(0)
  shape = (batch_size, size, size, 3)
  return {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': rng.integers(0, 10, batch_size, np.int32),
    'mask': np.ones(batch_size, bool),
  }


def _always_new(is_good, new, old):
  del is_good, old
  return new


def _compile(task, state, batch, *, guarded):
  step = functools.partial(train_step, task=task, sharding=create_sharding())
  with mock.patch.multiple(
    guards,
    all_finite=guards.all_finite if guarded else lambda _: True,
    choose=guards.choose if guarded else _always_new,
  ):
    # jit caches by function, so each program needs its own.
    return jax.jit(lambda s, b: step(s, b)).lower(state, batch).compile()


def measure_step(name, size, batch_size, repeats):
  """Prints the median ratio of guarded to unguarded steps."""
  task = _task(name)
  state, batch = _state(task, size), jax.device_put(_batch(size, batch_size))
  guarded = _compile(task, state, batch, guarded=True)
  bare = _compile(task, state, batch, guarded=False)
  with tempfile.TemporaryDirectory() as folder:
    watchdog = Watchdog(folder, seconds=600.0)
    ratios = []
    for i in range(repeats + 2):
      start = time.perf_counter()
      _, metrics = guarded(state, batch)
      jax.block_until_ready(metrics)
      watchdog.step_done('training')
      int(metrics['skipped_in_row'])
      middle = time.perf_counter()
      jax.block_until_ready(bare(state, batch))
      end = time.perf_counter()
      if i >= 2:
        ratios.append((middle - start) / (end - middle))
    watchdog.close()
  low, median, high = statistics.quantiles(ratios, n=4)
  print(
    f'{name}, {size} pixels, batch {batch_size}: guarded step'
    f' {median:.3f} times the bare one (quartiles {low:.3f} to {high:.3f},'
    f' {repeats} pairs)'
  )


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--repeats', type=int, default=50)
  args = parser.parse_args()
  print(f'{os.cpu_count()} cores, jax {jax.__version__}')
  measure_step('cifar_resnet20', 32, 128, args.repeats)
  measure_step('resnet50', 64, 16, args.repeats)


if __name__ == '__main__':
  main()
