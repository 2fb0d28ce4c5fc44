"""Runs programs of others, to compare with, in their own processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from resnet.errors import InputError, RunError

_SCRIPTS = pathlib.Path(__file__).parent


def has_torch() -> bool:
  """Returns whether this interpreter has the packages of torch_step.py."""
  return importlib.util.find_spec('torchvision') is not None


@contextlib.contextmanager
def open_rival(
  name: str,
  script: str,
  args: Sequence[Any],
  *,
  package: str,
  python: str | None = None,
  env: Mapping[str, str] | None = None,
) -> Iterator[Callable[[Any], Any]]:
  """Starts a process; yields a function that sends it a number for another.

  The script in benchmarks/ first prints 'ready' or an error, then answers each
  number on stdin with a number; each is a line of JSON. `python` is an
  interpreter with `package`, by default this one; `env` has more variables of
  the environment.
  """
  python = python or sys.executable
  try:
    process = subprocess.Popen(
      [python, str(_SCRIPTS / script), *map(str, args)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **(env or {})},
    )
  except OSError as error:
    raise InputError(f'{python} cannot be run: {error.strerror}.') from None
  stdin, stdout = process.stdin, process.stdout
  assert stdin and stdout

  def ask(number: Any) -> Any:
    print(json.dumps(number), file=stdin, flush=True)
    if answer := stdout.readline().strip():
      return json.loads(answer)
    raise RunError(f'{name} has ended; its error is above.')

  with process:
    answer = stdout.readline().strip()
    if not answer:
      raise InputError(
        f'{python} has no {package}: type another interpreter,'
        f' --{name.partition("-")[0]}-python=PYTHON'
      )
    if json.loads(answer) != 'ready':
      raise InputError(f'{name} does not work here: {json.loads(answer)}')
    yield ask
