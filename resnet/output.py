"""Output of long work that must not end with the terminal or the pipe."""

import os
import sys
from typing import Any


class LastingStream:
  """A text stream whose output is discarded once it cannot be written.

  The reader of a pipe may leave (`... | head`), a terminal may be closed, or a
  disk may be full: then the output is lost, and the work continues.
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
    # The descriptor itself, because the interpreter flushes what is buffered
    # when it ends, and libraries may write to it.
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
