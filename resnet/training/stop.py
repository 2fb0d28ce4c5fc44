"""Stopping a run from outside, and leaving it in a hurry."""

from collections.abc import Iterator
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn


class StopSignal:
  """SIGTERM or SIGINT: the run stops after the step, and saves.

  A second signal ends the process at once, and so does the first one where
  there is nothing to lose (`at_once`), or when `grace_seconds` have passed: it
  is a thread that waits for signals, because Python's own handlers are only
  called when the main thread comes back from XLA's compiler.

  Attributes:
    received: number of the first signal, None before.
  """

  def __init__(self, *, grace_seconds: float = 30.0):
    self.received: int | None = None
    self._grace_seconds = grace_seconds
    self._previous = {}
    self._may_leave = False
    self._timer: threading.Timer | None = None

  def __enter__(self) -> 'StopSignal':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._previous_fd = signal.set_wakeup_fd(self._writer.fileno())
    threading.Thread(target=self._listen, daemon=True).start()
    return self

  def __exit__(self, *exc: Any) -> None:
    signal.set_wakeup_fd(self._previous_fd)
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._timer:
      self._timer.cancel()
    self._writer.close()  # Ends the thread.

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Within the block a signal ends the process: all that counts is saved."""
    self._may_leave = True
    try:
      yield
    finally:
      self._may_leave = False

  def _receive(self, number: int, frame: Any) -> None:
    del frame
    self.received = self.received or number

  def _listen(self) -> None:
    with self._reader:
      while data := self._reader.recv(1):
        (number,) = data
        if number not in self._previous:
          continue
        name = signal.Signals(number).name
        if self._may_leave:
          print(
            f'Stopped by {name}; there was nothing to save. The same command'
            ' goes on.'
          )
          leave(128 + number)
        if self._timer:
          print(f'Stopped at once by a second {name}.', file=sys.stderr)
          leave(128 + number)
        self.received = number
        self._timer = threading.Timer(
          self._grace_seconds, self._too_late, [number]
        )
        self._timer.daemon = True
        self._timer.start()

  def _too_late(self, number: int) -> None:
    print(
      f'Not saved within {self._grace_seconds:g} s of'
      f' {signal.Signals(number).name} (preemption_grace_seconds). The same'
      ' command goes on from the checkpoint before.',
      file=sys.stderr,
    )
    leave(128 + number)


def leave(code: int) -> NoReturn:
  """Ends this process, and its workers, now: nothing is waited for."""
  for child in multiprocessing.active_children():
    child.kill()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
