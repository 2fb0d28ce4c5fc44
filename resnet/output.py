"""How a program ends: its output, its last line, its exit code."""

from collections.abc import Callable
import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from resnet.errors import InputError, RunError

# What a disk says when it is full, over quota, read-only or broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class LastingStream:
  """A text stream whose output is discarded once it cannot be written.

  So work continues when a pipe or a terminal closes or a disk is full.
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
    """Writes or discards what is buffered."""
    try:
      self._stream.flush()
    except OSError:
      self._discard()

  def _discard(self) -> None:
    # The descriptor: libraries and the ending interpreter write to it too.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, self._stream.fileno())
    os.close(null)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def outlive_terminal() -> None:
  """Lets this process go on where stdout or stderr can no longer be written.

  A stream that was closed from the start (`>&-`) is /dev/null.
  """
  for name in ('stdin', 'stdout', 'stderr'):
    if getattr(sys, name) is None:
      # Otherwise the next file that is opened would take its descriptor.
      mode = 'r' if name == 'stdin' else 'w'
      setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
  sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)


class _Echoes:
  """Hides errors of threads once the program has said why it ends.

  After a failed save, threads of Orbax and TensorStore report it repeatedly.
  """

  def __init__(self):
    # The garbage collector may call a hook within another.
    self._lock = threading.RLock()
    self._ended = False
    sys.unraisablehook = self._show(sys.__unraisablehook__)
    threading.excepthook = self._show(threading.__excepthook__)

  def end(self) -> None:
    with self._lock:
      self._ended = True

  def _show(self, hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    def show(args: Any) -> None:
      with self._lock:
        if not self._ended and str(args.exc_value) != 'Event loop is closed':
          hook(args)

    return show


def print_error(message: str, code: int = 2) -> int:
  """Says in one line what is wrong; returns the exit code, 2 for bad input."""
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return code


def exit_immediately(code: int) -> NoReturn:
  """Ends this process, and its workers, now: nothing is waited for."""
  for child in multiprocessing.active_children():
    child.kill()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(code)


def run_to_exit(join: Callable[[], Any], body: Callable[[Any], int]) -> int:
  """Runs a program; its errors become exit codes, after a line on stderr.

  `join` returns the `Cluster` of several processes, or None; `body` takes it
  and returns the exit code. The process ends here where threads or other
  processes would keep it from ending.
  """
  # Until training handles it, Ctrl-C ends the program at once.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  # Orbax and its event loops log tracebacks of errors that are reported here.
  for name in ('', 'absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  outlive_terminal()
  echoes = _Echoes()
  cluster = None

  def fail(error: Exception, code: int) -> int:
    echoes.end()
    if cluster:  # The others would wait for this process to take part.
      cluster.fail(str(error), code)
      exit_immediately(print_error(str(error), code))
    return print_error(str(error), code)

  try:
    cluster = join()
    code = body(cluster)
    if cluster:
      cluster.close(code)
    if code > 128:  # All is saved; a later size may still be compiled for.
      exit_immediately(code)
    return code
  except InputError as error:
    return fail(error, 2)
  except Exception as error:
    # After a failed save, Orbax's threads would keep the process for ever.
    known = getattr(error, 'errno', None) in _DISK_ERRORS
    if known or isinstance(error, RunError):
      exit_immediately(fail(error, 1))
    if cluster:
      cluster.wait_for_failure()
      cluster.fail(repr(error), 1)
    traceback.print_exc()
    exit_immediately(1)
