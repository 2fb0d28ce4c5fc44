"""Output streams, progress of long loops, how a program ends."""

from collections.abc import Callable
import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn, Self

import tqdm

from resnet.errors import InputError, RunError

# Errors of a disk that is full, over quota, read-only or broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
# How errors of Orbax begin that say nothing new: of threads that end late, and
# of each array of a damaged checkpoint, up to 2 kB, whenever the garbage
# collector finds its unfinished read. The damage itself is reported.
_NOT_SHOWN = ('Event loop is closed', 'Encountered error while reading array')
# Seconds between two lines of progress where there is no terminal.
PROGRESS_SECONDS = 30.0


class LastingStream:
  """A text stream that discards its output once it cannot be written.

  The program thus continues when a pipe or a terminal closes or a disk is full.
  """

  def __init__(self, stream: Any):
    """Wraps a stream that has a file descriptor."""
    self._stream = stream

  def write(self, text: str) -> int:
    """Writes or discards the text."""
    try:
      return self._stream.write(text)
    except OSError:
      self._discard()
      return len(text)

  def flush(self) -> None:
    """Writes or discards the buffer."""
    try:
      self._stream.flush()
    except OSError:
      self._discard()

  def _discard(self) -> None:
    # Redirect the descriptor, because libraries and the interpreter use it too.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, self._stream.fileno())
    os.close(null)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def outlive_terminal() -> None:
  """Lets this process continue when stdout or stderr cannot be written.

  A stream that is closed from the start (`>&-`) becomes /dev/null.
  """
  for name in ('stdin', 'stdout', 'stderr'):
    if getattr(sys, name) is None:
      # Otherwise the next file to be opened would get its descriptor.
      mode = 'r' if name == 'stdin' else 'w'
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
  sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)


class ProgressBar:
  """Shows the progress of a loop on stderr: a bar on a terminal, else lines.

  A line is printed every 30 seconds; its rate is that of these seconds:
  'prepared 6,000 of 60,000 images, 390 images/s, left 02:18'.
  """

  def __init__(
    self,
    verb: str,
    total: int | None,
    unit: str = 'images',
    *,
    is_shown: bool = True,
  ):
    """`verb` is a participle; None stands for an unknown total."""
    self._verb, self._total, self._unit = verb, total, unit
    self._is_plain = is_shown and not sys.stderr.isatty()
    self._bar = tqdm.tqdm(
      total=total,
      desc=verb,
      unit=f' {unit}',
      leave=False,
      disable=self._is_plain or not is_shown,
    )
    self._lock = threading.Lock()  # Threads may share a bar.
    self._done, self._shown, self._time = 0, 0, time.monotonic()

  def update(self, count: int = 1) -> None:
    """Counts finished items, up to the total."""
    with self._lock:
      if self._total is not None:
        count = min(count, self._total - self._done)
      self._done += count
      self._bar.update(count)
      seconds, done = time.monotonic() - self._time, self._done - self._shown
      if self._is_plain and done and seconds >= PROGRESS_SECONDS:
        print(self._line(done / seconds), file=sys.stderr, flush=True)
        self._shown, self._time = self._done, self._time + seconds

  def _line(self, rate: float) -> str:
    digits = f'{rate:,.0f}' if rate >= 10 else f'{rate:.2g}'
    of, left = '', ''
    if self._total is not None:
      seconds = (self._total - self._done) / rate
      of = f' of {self._total:,}'
      left = f', left {tqdm.tqdm.format_interval(seconds)}'
    unit = self._unit
    return f'{self._verb} {self._done:,}{of} {unit}, {digits} {unit}/s{left}'

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()


class _ThreadErrors:
  """Hides errors of threads once the program has printed why it ends.

  After a failed save, threads of Orbax and TensorStore report it repeatedly.
  """

  def __init__(self):
    # Reentrant, because the garbage collector may call a hook within another.
    self._lock = threading.RLock()
    self._hidden = False
    sys.unraisablehook = self._wrap(sys.__unraisablehook__)
    threading.excepthook = self._wrap(threading.__excepthook__)

  def hide(self) -> None:
    with self._lock:
      self._hidden = True

  def _wrap(self, hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    def show(args: Any) -> None:
      with self._lock:
        is_known = str(args.exc_value).startswith(_NOT_SHOWN)
        if not self._hidden and not is_known:
          hook(args)

    return show


def print_error(message: str, code: int = 2) -> int:
  """Prints an error as one line; returns the exit code, 2 for bad input."""
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return code


def exit_immediately(code: int) -> NoReturn:
  """Ends this process and its workers without waiting for anything."""
  for child in multiprocessing.active_children():
    child.kill()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(code)


def run_to_exit(join: Callable[[], Any], body: Callable[[Any], int]) -> int:
  """Runs a program; an error becomes a line on stderr and an exit code.

  `join` returns the `Cluster` of several processes, or None; `body` takes it
  and returns the exit code. Exits immediately where threads or other processes
  would keep this process alive.
  """
  # Ctrl-C ends the program immediately until training handles it.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # Orbax and its event loops log tracebacks of errors that are printed below.
  for name in ('', 'absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  outlive_terminal()
  thread_errors = _ThreadErrors()
  cluster = None

  def fail(error: Exception, code: int) -> int:
    thread_errors.hide()
    if cluster:  # The other processes would wait for this one.
      cluster.fail(str(error), code)
      exit_immediately(print_error(str(error), code))
    return print_error(str(error), code)

  try:
    cluster = join()
    code = body(cluster)
    if cluster:
      cluster.close(code)
    if code > 128:  # A signal: all is saved; do not wait for XLA to compile.
      exit_immediately(code)
    return code
  except InputError as error:
    return fail(error, 2)
  except Exception as error:
    # After a failed save, Orbax's threads would keep the process alive.
    known = getattr(error, 'errno', None) in _DISK_ERRORS
    if known or isinstance(error, RunError):
      exit_immediately(fail(error, 1))
    if cluster:
      cluster.wait_for_failure()
      cluster.fail(repr(error), 1)
    traceback.print_exc()
    exit_immediately(1)
