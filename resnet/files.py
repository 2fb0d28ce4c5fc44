"""Files that are written whole, and folders that one command uses at a time."""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import json
import math
import os
import socket
import sys
import tempfile
from typing import Any

from resnet.errors import InputError

LOCK_FILE = '.lock'


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields the path of a temporary file that replaces `path` at the end.

  It is on disk before it is renamed. After an error `path` is as it was, and
  the temporary file is gone.
  """
  folder, name = os.path.split(path)
  descriptor, temporary = tempfile.mkstemp(
    dir=folder or '.', prefix=f'.{name}.'
  )
  try:
    yield temporary
    os.fsync(descriptor)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
  finally:
    os.close(descriptor)


def write_atomically(path: str, content: str | bytes) -> None:
  """Writes a file whole or not at all, and leaves it on disk."""
  data = content.encode() if isinstance(content, str) else content
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    file.write(data)


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
  """Raises an OSError as an InputError: '`what` cannot be written: ...'."""
  try:
    yield
  except OSError as error:
    text = error.strerror or error
    raise InputError(f'{what} cannot be written: {text}.') from None


def check_writable(folder: str) -> None:
  """Raises an InputError where a folder exists and cannot be written."""
  if not os.path.lexists(folder):
    return
  with (
    writing(folder),
    tempfile.NamedTemporaryFile(dir=folder, prefix='.check.'),
  ):
    pass


def to_json(value: Any, **options: Any) -> str:
  """Returns JSON text that every parser reads: NaN and infinities are null."""

  def replace(x: Any) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
      return None
    if isinstance(x, dict):
      return {key: replace(item) for key, item in x.items()}
    if isinstance(x, list | tuple):
      return [replace(item) for item in x]
    return x

  return json.dumps(replace(value), allow_nan=False, **options)


def read_json_lines(path: str) -> list[dict[str, Any]]:
  """Reads a file of JSON objects, one a line; a missing file has none.

  Half a line at the end, which a kill leaves behind, is left out.
  """
  try:
    with open(path) as file:
      lines = [json.loads(line) for line in file if line.endswith('\n')]
    if not all(isinstance(line, dict) for line in lines):
      raise ValueError
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}.') from None
  except ValueError:
    raise InputError(
      f'{path} has a line that this program did not write: repair or move it.'
    ) from None
  return lines


class Lock:
  """Holds a folder until it is closed or its process has ended.

  The kernel drops the lock of a killed process, whatever its file says.
  """

  def __init__(
    self, workdir: str, advice: str = 'stop it, or give another --workdir'
  ):
    """Takes the lock.

    Raises:
      InputError: another process has it; the message names that process and
        gives `advice`. Or the file of the lock cannot be opened.
    """
    path = os.path.join(workdir, LOCK_FILE)
    try:
      self._file = open(path, 'a+')  # noqa: SIM115 (until `close`)
    except OSError as error:
      raise InputError(f'{path} cannot be opened: {error.strerror}.') from None
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      owner = _read_owner(path)
      self._file.close()
      raise InputError(
        f'{workdir} is in use by {owner}: wait until it has ended, {advice}.'
      ) from None
    except OSError as error:
      print(
        f'warning: {workdir} cannot be locked ({error.strerror}): take care'
        ' that no second command uses it.',
        file=sys.stderr,
      )
    self._file.truncate(0)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    owner = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}
    self._file.write(json.dumps(owner) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Lets the workdir go."""
    self._file.close()


def _read_owner(path: str) -> str:
  with contextlib.suppress(OSError, ValueError, KeyError), open(path) as file:
    owner = json.load(file)
    return f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'
  return 'another process'
