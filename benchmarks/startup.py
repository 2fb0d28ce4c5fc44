"""`startup`: from the start of the process to its first finished step.

  python -m resnet.tools.benchmark.startup FLAGS_OF_MAIN

is the process that is timed. It runs main.py up to its first step; the last
line is a JSON object: seconds since the epoch at which main.py said that it was
there, and the seconds that JAX was tracing and compiling from the first state
on.
"""

import argparse
import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from resnet.errors import InputError, RunError
from resnet.tools.benchmark import timing

HELP = 'from the start of a process to its first step, cold and warm'
COUNTS = {'rounds': 3}
# When main.py says that it came there, and what it had done until then.
_PHASES = {
  'imports': 'imported',
  'config and data': 'data',
  'first state': 'state',
}
_PREFIX = '/resnet/'
_MAIN = pathlib.Path(__file__).parents[3] / 'main.py'


def main(args: argparse.Namespace) -> dict[str, Any]:
  """Runs main.py up to its first step, several times; prints medians.

  Cold: no program is kept from before. Warm: all are. Data sets are prepared,
  and files of Python packages read, in a run before that is not timed.
  """
  rounds: dict[str, list[dict[str, float]]] = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as folder:
    _run(args.flags, folder, 'warm-up')
    for i in range(args.rounds):
      for found in rounds.values():
        found.append(_run(args.flags, folder, f'programs{i}'))
  medians = {
    kind: {x: statistics.median(one[x] for one in found) for x in found[0]}
    for kind, found in rounds.items()
  }
  print(f'{args.config_path}, {timing.machine()}: seconds, medians')
  print(f'  {"":16}{"cold":>8}{"warm":>8}')
  for phase, cold in medians['cold'].items():
    print(f'  {phase:16}{cold:8.2f}{medians["warm"][phase]:8.2f}')
  return {'config': args.config_path, 'seconds': medians, 'rounds': rounds}


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
      [sys.executable, '-m', __name__, *flags, f'--workdir={workdir}/run'],
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
  phases['compile'] = marks['compile_seconds']
  phases['first step'] = marks['first_step'] - before - phases['compile']
  phases['all'] = marks['first_step'] - start
  return phases


def _run_to_first_step() -> None:
  marks = {'compile_seconds': 0.0}

  def mark(event: str, **_: str | int) -> None:
    if event.startswith(_PREFIX):
      marks[event.removeprefix(_PREFIX)] = time.time()
    if 'first_step' in marks:
      print(json.dumps(marks), flush=True)
      os._exit(0)  # The rest of the run is not asked for.

  def add(event: str, duration_secs: float, **_: str | int) -> None:
    # Between the state and the end of the first step.
    if event.startswith('/jax/core/compile/') and 'state' in marks:
      marks['compile_seconds'] += duration_secs

  jax.monitoring.register_event_listener(mark)
  jax.monitoring.register_event_duration_secs_listener(add)
  sys.argv[0] = str(_MAIN)
  sys.path.insert(0, str(_MAIN.parent))
  runpy.run_path(str(_MAIN), run_name='__main__')


if __name__ == '__main__':
  _run_to_first_step()
