"""Stopping a run from outside."""

import signal
from typing import Any


class StopSignal:
  """SIGTERM or SIGINT: the run stops after the step; a second one kills it."""

  def __init__(self):
    self.received: int | None = None
    self._previous = {}

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exc: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, number: int, frame: Any) -> None:
    del frame
    self.received = number
    signal.signal(number, signal.SIG_DFL)
