"""Other input roads, each in a process of its own, for comparison.

What they import is no requirement of ours: the process may have another Python.
"""

import json
import os
import subprocess
import sys
from typing import Any

from resnet.errors import InputError, RunError

RIVALS = {'tfdata': 'tensorflow', 'torchvision': 'torchvision'}
_SCRIPT = os.path.join(
  os.path.dirname(__file__), '..', '..', 'benchmarks', 'input_rivals.py'
)


class Rival:
  """A process that makes batches when it is asked to; a context manager."""

  def __init__(
    self,
    name: str,
    *,
    python: str | None,
    folder: str,
    batch_size: int,
    num_workers: int,
  ):
    """Starts it.

    Args:
      name: one of RIVALS.
      python: its interpreter; None: this one.
      folder: of class folders of JPEG files.
      batch_size: images.
      num_workers: threads or processes.

    Raises:
      InputError: the interpreter has not what it needs.
    """
    self.name = name
    command = [
      *(python or sys.executable, _SCRIPT, name, folder),
      *(str(batch_size), str(num_workers)),
    ]
    try:
      self._process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
      )
    except OSError as error:
      raise InputError(f'{python} cannot be run: {error.strerror}.') from None
    if self._answer() != 'ready':
      raise InputError(
        f'{command[0]} has no {RIVALS[name]}: give another interpreter,'
        f' --{name}-python=PYTHON'
      )

  def __enter__(self) -> 'Rival':
    return self

  def __exit__(self, *_: Any) -> None:
    assert self._process.stdin
    self._process.stdin.close()
    self._process.wait()

  def images_per_second(self, num_batches: int) -> float:
    """Returns how fast it makes so many batches.

    Raises:
      RunError: it ended.
    """
    assert self._process.stdin
    self._process.stdin.write(f'{num_batches}\n')
    self._process.stdin.flush()
    answer = self._answer()
    if answer is None:
      raise RunError(f'{self.name} has ended; see above.')
    return answer

  def _answer(self) -> Any:
    assert self._process.stdout
    line = self._process.stdout.readline()
    return json.loads(line) if line.strip() else None
