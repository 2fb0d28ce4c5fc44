"""Training speed: images per second, and the time spent waiting for data."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Any

from resnet.training.run_length import RunLength


class Meter:
  """A stopwatch that leaves out evaluation, checkpoints and compilation.

  Read the meter when a step is done, not when the step starts.
  """

  def __init__(self, length: RunLength, loader: Any, first_step: int):
    """Starts the clock; `loader.wait_seconds` is the time spent waiting."""
    self._length = length
    self._loader = loader
    self._total_seconds = 0.0
    self.start(first_step)

  def start(self, step: int) -> None:
    """Starts the clock; call it after the first step, which compiles."""
    self._first_step = step
    self._start_interval(step)

  @contextlib.contextmanager
  def paused(self, finish_steps: Callable[[], None]) -> Iterator[None]:
    """Finishes the steps in flight, and stops the clock during the block."""
    finish_steps()
    self._seconds += time.monotonic() - self._time
    wait = self._loader.wait_seconds
    yield
    self._time = time.monotonic()
    self._wait += self._loader.wait_seconds - wait

  def interval(self, step: int) -> dict[str, float]:
    """Returns the rates since the last call; call it when `step` is done.

    The first step has no rate, because its time is mostly compilation.
    """
    seconds = self._seconds + time.monotonic() - self._time
    wait = self._loader.wait_seconds - self._wait
    num_images = (step - self._step) * self._length.batch_size
    self._total_seconds += seconds
    self._start_interval(step)
    if not num_images:
      return {}
    return {
      'images_per_second': num_images / seconds,
      'data_wait': wait / seconds,
    }

  def _start_interval(self, step: int) -> None:
    self._step, self._seconds = step, 0.0
    self._time, self._wait = time.monotonic(), self._loader.wait_seconds

  @property
  def mean(self) -> float | None:
    """Images per second over all intervals; None before the first one."""
    if not self._total_seconds:
      return None
    steps = self._step - self._first_step
    return steps * self._length.batch_size / self._total_seconds

  def seconds_left(self, step: int) -> float | None:
    """Estimates the time that the steps after `step` will take."""
    if not self.mean:
      return None
    return (self._length.num_steps - step) * self._length.batch_size / self.mean
