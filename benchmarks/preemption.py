"""Measures how long a notice of preemption leaves a run to save its state.

  PYTHONPATH=. python benchmarks/preemption.py --json=FILE

The state is that of ResNet-152 with LAMB and moving averages. After SIGTERM a
run ends its step and saves: "alone" if no other save is in progress, "during a
save" if one has just begun, whose time counts too. "Flushed" means that the
files are on the disk and not only in the kernel's memory. TMPDIR chooses the
disk.
"""

import os
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import resnet152
from resnet.run.checkpoint import FOLDER, Checkpoints
from resnet.tools import command
from resnet.tools.benchmark import programs, timing


def main(args):
  """Measures and prints; compiles the checks of a save first, as a run does."""
  config = resnet152.get_config()
  config.optimizer.name, config.optimizer.decay_rule = 'lamb', 'kernels'
  config.ema_decay = 0.9999
  grace = config.preemption_grace_seconds
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype),
    programs.resolve_here(config).abstract_state(),
  )
  state = state.replace(step=jnp.zeros_like(state.step))
  seconds = {name: [] for name in ('alone', 'during a save')}
  flushed = {name: [] for name in seconds}
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.compile(state)
    for _ in range(args.saves):
      for name in seconds:
        os.sync()  # What earlier saves left to write is no part of this one.
        start = time.perf_counter()
        for _ in range(1 + (name == 'during a save')):
          state = state.replace(step=state.step + 1)
          checkpoints.save(state, None)
        step = int(state.step)
        checkpoints.finish(expected_step=step)
        seconds[name].append(time.perf_counter() - start)
        num_bytes = _flush(pathlib.Path(folder, FOLDER, str(step)))
        flushed[name].append(time.perf_counter() - start)
    checkpoints.close()
  figures = {
    'state_bytes': sum(x.nbytes for x in jax.tree.leaves(state)),
    'checkpoint_bytes': num_bytes,
    'grace_seconds': grace,
    'seconds': {k: _summary(x) for k, x in seconds.items()},
    'flushed_seconds': {k: _summary(x) for k, x in flushed.items()},
  }
  print(f'{num_bytes / 1e6:,.0f} MB in a checkpoint')
  for name in seconds:
    done, safe = figures['seconds'][name], figures['flushed_seconds'][name]
    print(
      f'  {name}: complete after {done["median"]:.2f} s (most'
      f' {done["most"]:.2f}), flushed after {safe["median"]:.2f} s (most'
      f' {safe["most"]:.2f}) of {grace} s'
    )
  timing.save_figures(args.json, figures)


def _summary(values):
  return {**timing.spread(values), 'most': max(values)}


def _flush(folder):
  """Waits until all files in a folder are on the disk; returns their bytes."""
  num_bytes = 0
  for path in folder.rglob('*'):
    if path.is_file():
      num_bytes += path.stat().st_size
      with path.open('rb') as file:
        os.fsync(file.fileno())
  return num_bytes


def parser():
  result = command.Parser(doc=__doc__, prog='benchmarks/preemption.py')
  timing.add_arguments(result, {'saves': 10})
  return result


if __name__ == '__main__':
  command.run(main, parser())
