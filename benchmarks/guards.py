"""What the guards of a run cost: of a step, of a save, in memory.

  PYTHONPATH=. python benchmarks/guards.py step
  PYTHONPATH=. python benchmarks/guards.py save --saves=50

`step`: the training step of ResNet-20 (CIFAR, batch 128) and of ResNet-50
(64 pixels, batch 16), as it is, with what the loop does for the guards around
it, against the same step without them; the two in turn, the median ratio of
pairs. Without: updates are not checked, nothing is read back, no watchdog.
`save`: seconds that the loop stands still for a save of ResNet-101 with its
momentum, 356 MB, and the resident memory over the saves.
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
from resnet.training import guards
from resnet.training.checkpoint import Checkpoints
from resnet.training.state import create_state
from resnet.training.step import train_step
from resnet.training.watchdog import Watchdog


def _task(name):
  config = fake.get_config()
  config.model.name = name
  config.log_every_steps = 100
  return experiment.resolve(config).task


def _state(task, size):
  create = functools.partial(
    create_state, model=task.model, tx=task.tx, image_shape=(size, size, 3)
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
  step = functools.partial(train_step, task=task)
  with mock.patch.multiple(
    guards,
    all_finite=guards.all_finite if guarded else lambda _: True,
    choose=guards.choose if guarded else _always_new,
  ):
    # Not the function itself: jit remembers what it has traced.
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


def _resident_bytes():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def measure_saves(count):
  """Prints how long saves stall the loop, and the memory over them."""
  task = _task('resnet101')
  state = _state(task, 32)
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  seconds, memory = [], []
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder, keep=1)
    for i in range(count):
      state = state.replace(step=state.step + 1)
      jax.block_until_ready(state)
      start = time.perf_counter()
      checkpoints.save(state, None)
      seconds.append(time.perf_counter() - start)
      checkpoints.finish(expected_step=i + 1)
      memory.append(_resident_bytes())
    checkpoints.close()
  print(
    f'{count} saves of {num_bytes / 1e6:.0f} MB: the loop stands still for'
    f' {statistics.median(seconds[1:]):.3f} s (median; at most'
    f' {max(seconds[1:]):.3f} s, the first {seconds[0]:.3f} s)'
  )
  print(
    'resident memory, MB: '
    + ', '.join(
      f'{memory[i] / 1e6:.0f} after {i + 1}'
      for i in sorted({0, count // 10, count // 2, count - 1})
    )
  )


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('what', choices=['step', 'save'])
  parser.add_argument('--repeats', type=int, default=50)
  parser.add_argument('--saves', type=int, default=50)
  args = parser.parse_args()
  print(f'{os.cpu_count()} cores, jax {jax.__version__}')
  if args.what == 'step':
    measure_step('cifar_resnet20', 32, 128, args.repeats)
    measure_step('resnet50', 64, 16, args.repeats)
  else:
    measure_saves(args.saves)


if __name__ == '__main__':
  main()
