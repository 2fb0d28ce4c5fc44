"""Measures how long a save blocks the loop, and saves and restores in MB/s.

  PYTHONPATH=. python benchmarks/checkpoints.py --config=configs/fake.py

Set TMPDIR to measure another disk.
"""

import os
import tempfile
import time

import jax

from resnet.errors import InputError
from resnet.run.checkpoint import Checkpoints
from resnet.tools import command
from resnet.tools.benchmark import programs, timing


def main(args):
  """Measures and prints; medians leave out the first save, which compiles."""
  count = args.saves
  if count < 2:
    raise InputError('--saves must be at least 2.')
  run = programs.resolve_here(args.config)
  state = run.create_state()
  stalls, saves, restores, memory = [], [], [], {}
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder, keep=1)
    for i in range(1, count + 1):
      state = state.replace(step=state.step + 1)
      jax.block_until_ready(state)
      start = time.perf_counter()
      checkpoints.save(state, None)
      stalls.append(time.perf_counter() - start)
      checkpoints.finish(expected_step=i)
      saves.append(time.perf_counter() - start)
      start = time.perf_counter()
      jax.block_until_ready(checkpoints.restore(i, run.abstract_state()))
      restores.append(time.perf_counter() - start)
      if i in (1, count // 2, count):
        memory[i] = _resident_bytes()
    checkpoints.close()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  stall, saved, restored = (
    timing.spread(seconds[1:]) for seconds in (stalls, saves, restores)
  )
  print(
    f'{run.config["model.name"]}, {size / 1e6:,.0f} MB: {count} saves\n'
    f'  a save blocks the loop for {stall["median"]:.3f} s (quartiles'
    f' {stall["low"]:.3f} to {stall["high"]:.3f}; the first {stalls[0]:.3f})'
  )
  for what, seconds in (
    ('on disk after', saved['median']),
    ('restored and verified in', restored['median']),
  ):
    print(f'  {what} {seconds:.3f} s, {size / 1e6 / seconds:,.0f} MB/s')
  sizes = (f'{size / 1e6:,.0f} after {i}' for i, size in memory.items())
  print(f'  resident memory, MB: {", ".join(sizes)}')
  figures = {
    'network': run.config['model.name'],
    'saves': count,
    'state_bytes': size,
    'first_stall_seconds': stalls[0],
    'stall_seconds': stall,
    'save_seconds': saved,
    'restore_seconds': restored,
    'resident_bytes': memory,
  }
  timing.save_figures(args.json, figures)


def _resident_bytes():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def parser():
  result = command.ConfigParser(doc=__doc__, prog='benchmarks/checkpoints.py')
  timing.add_arguments(result, {'saves': 10})
  return result


if __name__ == '__main__':
  command.run(main, parser())
