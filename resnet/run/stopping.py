"""Stops a run: on signals, and by a watchdog if it hangs."""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import datetime
import faulthandler
import functools
import os
import signal
import socket
import statistics
import sys
import threading
import time
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from resnet.output import exit_immediately, print_error

# Some steps take many times the median, for example while the disk is busy.
_MANY_STEPS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a run ended.

  Attributes:
    step: number of finished updates.
    metrics: metrics of the evaluation at `step`, or None.
    images_per_second: training speed since the process started; None if no
      log interval has ended.
    signal: number of the signal that stopped the run, or None.
    was_complete: whether the run was already complete at the start.
  """

  step: int
  metrics: Mapping[str, float] | None
  images_per_second: float | None = None
  signal: int | None = None
  was_complete: bool = False


class StopSignal:
  """Records SIGTERM, SIGINT or SIGHUP, so that the loop stops and saves.

  The process exits immediately on a second signal, or `grace_seconds` after the
  first signal. In a run with one process, the first signal suffices within
  `exit_on_signal`. A thread waits for signals, because Python calls handlers
  only when the main thread returns from XLA's compiler.

  Attributes:
    received: number of the first signal, or None.
  """

  def __init__(
    self,
    *,
    grace_seconds: float = 30.0,
    on_leave: Callable[[str, int], None] | None = None,
  ):
    """Calls `on_leave(reason, code)` on a second signal or a timeout."""
    self.received: int | None = None
    self._grace_seconds = grace_seconds
    self._on_leave = on_leave
    self._previous = {}
    self._may_leave = False
    self._timer: threading.Timer | None = None

  def __enter__(self) -> 'StopSignal':
    numbers = [signal.SIGTERM, signal.SIGINT]  # Ctrl-C sends SIGINT.
    # A closed terminal sends SIGHUP, which is ignored under `nohup`.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    for number in numbers:
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
  def exit_on_signal(self) -> Iterator[None]:
    """Lets a signal end the process in a block that has nothing to save."""
    self._may_leave = jax.process_count() == 1
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
            ' continues.'
          )
          exit_immediately(128 + number)
        if self._timer:
          self._exit(f'Stopped at once by a second {name}.', number)
        self.received = number
        message = (
          f'Not saved within {self._grace_seconds:g} s of {name}'
          ' (preemption_grace_seconds). The same command continues from the'
          ' previous checkpoint.'
        )
        self._timer = threading.Timer(
          self._grace_seconds, self._exit, [message, number]
        )
        self._timer.daemon = True
        self._timer.start()

  def _exit(self, message: str, number: int) -> NoReturn:
    print(message, file=sys.stderr)
    if self._on_leave:
      self._on_leave(message, 128 + number)
    exit_immediately(128 + number)


class AgreedSignal:
  """Lets all processes stop at the same step, on a signal to any of them.

  The devices compute the maximum of all signal numbers at each step. It is read
  two steps later, so that no process waits for it.
  """

  _LAG = 2

  def __init__(self, stop: StopSignal, sharding: jax.sharding.Sharding):
    self._stop = stop
    self._sharding = sharding
    self._max = jax.jit(jnp.max)
    self._votes: collections.deque[jax.Array] = collections.deque()
    # Cached: making an array takes as long as computing the maximum.
    self._array = functools.cache(self._make_array)
    self._agreed: int | None = None

  @property
  def number(self) -> int | None:
    """The number of the signal, or None."""
    return self._stop.received if jax.process_count() == 1 else self._agreed

  def poll(self) -> int | None:
    """Returns `number`; all processes must call this equally often."""
    if jax.process_count() > 1 and self._agreed is None:
      self._votes.append(self._max(self._array(self._stop.received or 0)))
      if len(self._votes) > self._LAG:
        self._agreed = int(self._votes.popleft()) or None
    return self.number

  def _make_array(self, number: int) -> jax.Array:
    """Returns an array over all devices that is `number` on local ones."""
    mine = np.full(jax.local_device_count(), number, np.int32)
    return jax.make_array_from_process_local_data(self._sharding, mine)


class Watchdog:
  """Ends the process after max(`seconds`, 50 median steps) without progress."""

  def __init__(self, workdir: str, *, seconds: float | None):
    self._workdir = workdir
    self._seconds = seconds
    self._what: str | None = None
    self._since = time.monotonic()
    self._step_seconds = collections.deque(maxlen=100)
    self._closed = threading.Event()
    if seconds is not None:
      threading.Thread(target=self._watch, daemon=True).start()

  def watch(self, what: str | None) -> None:
    """Restarts the timer for `what`, such as 'saving step 8'; None stops it."""
    # In this order, because the thread may read in between.
    self._since, self._what = time.monotonic(), what

  def step_done(self, what: str) -> None:
    """Records the time since the last call as a step time, and restarts."""
    if self._what is not None:
      self._step_seconds.append(time.monotonic() - self._since)
    self.watch(what)

  def close(self) -> None:
    """Stops the thread."""
    self._closed.set()

  def _limit(self) -> float:
    median = statistics.median(self._step_seconds or [0.0])
    return max(self._seconds or 0.0, _MANY_STEPS * median)

  def _watch(self) -> None:
    assert self._seconds is not None
    while not self._closed.wait(min(self._seconds / 10, 5.0)):
      what, since = self._what, self._since
      seconds = time.monotonic() - since
      if what is not None and seconds > self._limit():
        self._exit(what, seconds)

  def _exit(self, what: str, seconds: float) -> NoReturn:
    """Writes the stacks of all threads, prints the file's path, and exits."""
    now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')
    name = f'stacks_{now}_{jax.process_index()}.txt'
    path = os.path.join(self._workdir, name)
    try:
      with open(path, 'w') as file:
        file.write(f'{what} for {seconds:.0f} s\n')
        file.flush()
        faulthandler.dump_traceback(file)
    except OSError as error:
      faulthandler.dump_traceback(sys.stderr)
      path = f'stderr ({error})'
    message = (
      f'{what} has made no progress for {seconds:.0f} s, longer than'
      f' {self._limit():.0f} s (watchdog_seconds). The stacks of all threads'
      f' are in {path}. The same command continues from the newest checkpoint.'
    )
    exit_immediately(print_error(message, code=1))
