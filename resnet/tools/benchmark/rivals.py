"""Other programs, each in a process of its own, for comparison.

What they import is no requirement of ours: the process may have another Python.
"""

from collections.abc import Sequence
import json
import pathlib
import subprocess
import sys
from typing import Any

from resnet.errors import InputError, RunError

_SCRIPTS = pathlib.Path(__file__).parents[3] / 'benchmarks'


class Rival:
  """A process that works when it is asked to; a context manager."""

  def __init__(
    self,
    name: str,
    script: str,
    args: Sequence[Any],
    *,
    package: str,
    python: str | None,
  ):
    """Starts it.

    Args:
      name: to tell it by; --NAME-python is its interpreter's flag.
      script: in benchmarks/. It says 'ready', or what is wrong, then answers
        each number with a number; all as JSON, a line each.
      args: of the script.
      package: that it needs.
      python: its interpreter; None: this one.

    Raises:
      InputError: the interpreter has not what it needs, or the script says
        what is wrong.
    """
    self.name = name
    command = [python or sys.executable, str(_SCRIPTS / script)]
    try:
      self._process = subprocess.Popen(
        [*command, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
    except OSError as error:
      raise InputError(f'{python} cannot be run: {error.strerror}.') from None
    answer = self._answer()
    if answer != 'ready':
      self._end()
      if answer:
        raise InputError(f'{name} does not work here: {answer}')
      raise InputError(
        f'{command[0]} has no {package}: give another interpreter,'
        f' --{name.partition("-")[0]}-python=PYTHON'
      )

  def __enter__(self) -> 'Rival':
    return self

  def __exit__(self, *_: Any) -> None:
    self._end()

  def _end(self) -> None:
    assert self._process.stdin and self._process.stdout
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def ask(self, number: int) -> float:
    """Returns what it answers.

    Raises:
      RunError: it ended.
    """
    assert self._process.stdin
    self._process.stdin.write(f'{number}\n')
    self._process.stdin.flush()
    answer = self._answer()
    if answer is None:
      raise RunError(f'{self.name} has ended; see above.')
    return answer

  def _answer(self) -> Any:
    assert self._process.stdout
    line = self._process.stdout.readline()
    return json.loads(line) if line.strip() else None
