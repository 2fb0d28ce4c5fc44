"""A thread that ends a run in which nothing moves any more."""

import collections
import datetime
import faulthandler
import os
import statistics
import sys
import threading
import time

import jax

from resnet.run.signals import leave

# A step may well take many times the median: evaluation's first batch, a disk
# that is busy.
_MANY_STEPS = 50


class Watchdog:
  """Ends the process when it has been silent for too long.

  Too long is more than `seconds`, and more than 50 times the median step. It
  rests until it is told what to watch, and while the program compiles.
  """

  def __init__(self, workdir: str, *, seconds: float | None):
    self._workdir = workdir
    self._seconds = seconds
    self._what: str | None = None
    self._since = time.monotonic()
    self._step_seconds = collections.deque(maxlen=100)
    self._closed = threading.Event()
    if seconds is not None:
      threading.Thread(target=self._watch, daemon=True).start()

  def watch(self, what: str) -> None:
    """Begins to count the seconds of `what`, such as 'training step 12'."""
    self._what, self._since = what, time.monotonic()

  def step_done(self, what: str) -> None:
    """As `watch`, and the time since the last call was a step's."""
    if self._what is not None:
      self._step_seconds.append(time.monotonic() - self._since)
    self.watch(what)

  def rest(self) -> None:
    """Stops counting: what comes may take any time."""
    self._what = None

  def close(self) -> None:
    """Ends the thread."""
    self._closed.set()

  def _limit(self) -> float:
    median = statistics.median(self._step_seconds or [0.0])
    return max(self._seconds or 0.0, _MANY_STEPS * median)

  def _watch(self) -> None:
    assert self._seconds is not None
    while not self._closed.wait(min(self._seconds / 10, 5.0)):
      # In this order: `rest` or `watch` may come in between.
      since, what = self._since, self._what
      seconds = time.monotonic() - since
      if what is not None and seconds > self._limit():
        self._bark(what, seconds)

  def _bark(self, what: str, seconds: float) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')
    path = os.path.join(
      self._workdir, f'stacks_{now}_{jax.process_index()}.txt'
    )
    try:
      with open(path, 'w') as file:
        file.write(f'{what} for {seconds:.0f} s\n')
        file.flush()
        faulthandler.dump_traceback(file)
    except OSError as error:
      faulthandler.dump_traceback(sys.stderr)
      path = f'stderr ({error})'
    print(
      f'error: {what} has hung for {seconds:.0f} s, longer than'
      f' {self._limit():.0f} s (watchdog_seconds): the run ends. What its'
      f' threads did is in {path}. The same command goes on from the newest'
      ' checkpoint.',
      file=sys.stderr,
    )
    leave(1)
