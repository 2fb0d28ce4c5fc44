"""Measures the time from the start of a process to its first step, by phase.

  PYTHONPATH=. python benchmarks/startup.py --config=configs/digits.py

Takes the flags of main.py. Cold: no program is cached. Warm: all are.
"""

import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from resnet.errors import InputError, RunError
from resnet.tools import command
from resnet.tools.benchmark import timing

# Name of the phase that ends at an event of main.py.
_PHASES = {
  'imports': 'imported',
  'config and data': 'data',
  'first state': 'state',
}
_PREFIX = '/resnet/'
_TIMED = 'timed'  # First argument of the process that is timed.
_MAIN = pathlib.Path(__file__).parents[1] / 'main.py'


def main(args):
  rounds = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as folder:
    # Prepares the data set and reads the files of Python packages.
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
  figures = {'config': args.config_path, 'seconds': medians, 'rounds': rounds}
  timing.save_figures(args.json, figures)


def _run(flags, folder, cache):
  """Returns the seconds of each phase."""
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': os.path.join(folder, cache),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  with tempfile.TemporaryDirectory(dir=folder) as workdir:
    start = time.time()
    done = subprocess.run(
      [sys.executable, __file__, _TIMED, *flags, f'--workdir={workdir}/run'],
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


def _run_to_first_step():
  """Runs main.py to the end of its first step, then prints one JSON line.

  It holds the seconds since the epoch at which main.py reached each mark, and
  the seconds that JAX traced and compiled between the state and the end of the
  first step.
  """
  marks = {'compile_seconds': 0.0}

  def mark(event, **_):
    if event.startswith(_PREFIX):
      marks[event.removeprefix(_PREFIX)] = time.time()
    if 'first_step' in marks:
      print(json.dumps(marks), flush=True)
      os._exit(0)  # Skip the rest of the run.

  def add(event, duration_secs, **_):
    if event.startswith('/jax/core/compile/') and 'state' in marks:
      marks['compile_seconds'] += duration_secs

  jax.monitoring.register_event_listener(mark)
  jax.monitoring.register_event_duration_secs_listener(add)
  sys.argv[:2] = [str(_MAIN)]
  sys.path.insert(0, str(_MAIN.parent))
  runpy.run_path(str(_MAIN), run_name='__main__')


def parser():
  result = command.ConfigParser(doc=__doc__, prog='benchmarks/startup.py')
  timing.add_arguments(result, {'rounds': 3})
  return result


if __name__ == '__main__':
  if sys.argv[1:2] == [_TIMED]:
    _run_to_first_step()
  else:
    command.run(main, parser())
