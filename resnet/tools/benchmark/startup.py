"""`startup`: from the start of the process to its first finished step."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from resnet.errors import InputError, RunError
from resnet.files import write_atomically
from resnet.tools.benchmark import timing

HELP = 'from the start of a process to its first step, cold and warm'
# When main.py says that it came there, and what it had done until then.
_PHASES = {
  'imports': 'imported',
  'config and data': 'data',
  'first state': 'state',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument('--rounds', type=int, default=3, help='default: 3')
  parser.add_argument('--json', metavar='FILE', help='where to write figures')


def main(args: argparse.Namespace) -> None:
  """Runs main.py up to its first step, several times; prints medians.

  Cold: no program is kept from before. Warm: all are. Data sets are prepared,
  and files of Python packages read, in a run before that is not timed.
  """
  if args.rounds < 1:
    raise InputError('--rounds must be at least 1.')
  rounds: dict[str, list[dict[str, float]]] = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as folder:
    _run(args.flags, folder, 'warm-up')
    for i in range(args.rounds):
      for kind in rounds:
        rounds[kind].append(_run(args.flags, folder, f'programs{i}'))
  phases = {
    kind: {
      phase: statistics.median(one[phase] for one in found)
      for phase in found[0]
    }
    for kind, found in rounds.items()
  }
  result = {
    'machine': timing.machine(),
    'config': args.config_path,
    'seconds': phases,
    'rounds': rounds,
  }
  print(f'{args.config_path}, {result["machine"]}: seconds, medians')
  print(f'  {"":16}{"cold":>8}{"warm":>8}')
  for phase in phases['cold']:
    print(
      f'  {phase:16}'
      + ''.join(f'{phases[kind][phase]:8.2f}' for kind in phases)
    )
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


def _run(flags: list[str], folder: str, cache: str) -> dict[str, float]:
  """Returns the seconds of each phase."""
  environment: dict[str, Any] = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': os.path.join(folder, cache),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    start = time.time()
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'resnet.tools.benchmark.first_step'),
        *(*flags, f'--workdir={workdir}/run'),
      ],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
  if done.returncode == 2:
    raise InputError(done.stderr.removeprefix('error: '))
  if done.returncode:
    raise RunError(f'main.py ended with {done.returncode}: {done.stderr}')
  marks = json.loads(done.stdout.splitlines()[-1])
  phases, before = {}, start
  for phase, mark in _PHASES.items():
    phases[phase] = marks[mark] - before
    before = marks[mark]
  compile_seconds = marks['compile_seconds']
  phases['compile'] = compile_seconds
  phases['first step'] = marks['first_step'] - before - compile_seconds
  phases['all'] = marks['first_step'] - start
  return phases
