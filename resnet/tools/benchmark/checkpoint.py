"""`checkpoint`: how long a save stops the loop, and how fast it is on disk."""

import argparse
import json
import os
import tempfile
import time
from typing import Any

import jax

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.files import check_writable, write_atomically
from resnet.run.checkpoint import Checkpoints
from resnet.tools.benchmark import programs, timing

HELP = 'saves and restores of the state of a run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument('--saves', type=int, default=10, help='default: 10')
  parser.add_argument(
    '--folder',
    metavar='DIR',
    help='on the disk to be measured; default: that of temporary files',
  )
  parser.add_argument('--json', metavar='FILE', help='where to write figures')


def main(args: argparse.Namespace) -> None:
  """Measures and prints; the first save, which compiles, stands alone."""
  if args.saves < 2:
    raise InputError('--saves must be at least 2.')
  if args.folder is not None:
    if not os.path.isdir(args.folder):
      raise InputError(f'--folder={args.folder} is no folder.')
    check_writable(args.folder)
  run = programs.resolve_here(args.config)
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    found = _measure(run, folder, args.saves)
  result = {
    'machine': timing.machine(),
    'network': run.config['model.name'],
    'saves': args.saves,
    **found,
  }
  stall, saved, restored = (
    result[name]
    for name in ('stall_seconds', 'save_seconds', 'restore_seconds')
  )
  size = result['state_bytes'] / 1e6
  print(
    f'{result["network"]}, {size:,.0f} MB: {args.saves} saves\n'
    f'  the loop stands still for {stall["median"]:.3f} s (quartiles'
    f' {stall["low"]:.3f} to {stall["high"]:.3f}; the first'
    f' {result["first_stall_seconds"]:.3f})\n'
    f'  on disk after {saved["median"]:.3f} s, {size / saved["median"]:,.0f}'
    ' MB/s\n'
    f'  restored and checked in {restored["median"]:.3f} s,'
    f' {size / restored["median"]:,.0f} MB/s\n'
    '  resident memory, MB: '
    + ', '.join(
      f'{memory / 1e6:,.0f} after {count}'
      for count, memory in result['resident_bytes'].items()
    )
  )
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


def _measure(run: Experiment, folder: str, count: int) -> dict[str, Any]:
  state = run.create_state()
  stalls, saves, restores, memory = [], [], [], {}
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
    if i in (1, max(1, count // 2), count):
      memory[i] = _resident_bytes()
  checkpoints.close()
  return {
    'state_bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    'first_stall_seconds': stalls[0],
    'stall_seconds': timing.spread(stalls[1:]),
    'save_seconds': timing.spread(saves[1:]),
    'restore_seconds': timing.spread(restores[1:]),
    'resident_bytes': memory,
  }


def _resident_bytes() -> int:
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
