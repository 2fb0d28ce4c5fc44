"""Runs main.py up to its first step, and tells when it came where.

  python -m resnet.tools.benchmark.first_step FLAGS_OF_MAIN

The last line is a JSON object: seconds since the epoch at which main.py said
that it was there, and the seconds that JAX was tracing and compiling from the
first state on.
"""

import json
import os
import pathlib
import runpy
import sys
import time

import jax

PREFIX = '/resnet/'
_LAST = 'first_step'
_MAIN = pathlib.Path(__file__).parents[3] / 'main.py'


def main() -> None:
  marks: dict[str, float] = {}
  compilation: dict[str, float] = {}

  def mark(event: str, **_: str | int) -> None:
    if not event.startswith(PREFIX):
      return
    name = event.removeprefix(PREFIX)
    marks[name] = time.time()
    compilation.setdefault(name, 0.0)
    if name == _LAST:
      seconds = {'compile_seconds': sum(compilation.values())}
      print(json.dumps({**marks, **seconds}), flush=True)
      os._exit(0)  # The rest of the run is not asked for.

  def add(event: str, duration_secs: float, **_: str | int) -> None:
    # Between the state and the end of the first step.
    if event.startswith('/jax/core/compile/') and 'state' in marks:
      compilation[event] = compilation.get(event, 0.0) + duration_secs

  jax.monitoring.register_event_listener(mark)
  jax.monitoring.register_event_duration_secs_listener(add)
  sys.argv[0] = str(_MAIN)
  sys.path.insert(0, str(_MAIN.parent))
  runpy.run_path(str(_MAIN), run_name='__main__')


if __name__ == '__main__':
  main()
