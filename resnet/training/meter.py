"""Rates of training: images per second, and the share of waiting for data."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Protocol

from resnet.training.run_length import RunLength


class Waiter(Protocol):
  """Whoever knows how long was waited for data, in seconds."""

  wait_seconds: float


class Meter:
  """A stopwatch that stands still in evaluation, saving and compilation.

  It is read when a step is done, not when it is begun.
  """

  def __init__(self, length: RunLength, waiter: Waiter, first_step: int):
    self._length = length
    self._waiter = waiter
    self._step = self._begin_step = first_step
    self._total_seconds = 0.0
    self._zero()

  def _zero(self) -> None:
    self._seconds = 0.0
    self._time, self._wait = time.monotonic(), self._waiter.wait_seconds

  def start(self, step: int) -> None:
    """Begins to count after `step`, the first one, which was compiled."""
    self._step = self._begin_step = step
    self._zero()

  @contextlib.contextmanager
  def paused(self, finish_steps: Callable[[], None]) -> Iterator[None]:
    """Finishes the steps in flight, then stands still for the block."""
    finish_steps()
    self._seconds += time.monotonic() - self._time
    wait = self._waiter.wait_seconds
    yield
    self._time = time.monotonic()
    self._wait += self._waiter.wait_seconds - wait

  def interval(self, step: int) -> dict[str, float]:
    """Returns the rates since the last call, at the moment `step` is done.

    The interval of the first step has no rate: it was all compilation.
    """
    seconds = self._seconds + time.monotonic() - self._time
    wait = self._waiter.wait_seconds - self._wait
    num_images = (step - self._step) * self._length.batch_size
    self._step, self._total_seconds = step, self._total_seconds + seconds
    self._zero()
    if not num_images:
      return {}
    return {
      'images_per_second': num_images / seconds,
      'data_wait': wait / seconds,
    }

  @property
  def mean(self) -> float | None:
    """Images per second over all intervals; None before there was one."""
    if not self._total_seconds:
      return None
    steps = self._step - self._begin_step
    return steps * self._length.batch_size / self._total_seconds

  def seconds_left(self, step: int) -> float | None:
    """Returns the time that the steps after `step` will take."""
    if not self.mean:
      return None
    return (self._length.num_steps - step) * self._length.batch_size / self.mean
