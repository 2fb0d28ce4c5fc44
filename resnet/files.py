"""Atomic writes, folder locks, and JSON."""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import functools
import json
import math
import os
import socket
import sys
import tempfile
from typing import Any

from resnet.errors import InputError, reason_of

LOCK_FILE = '.lock'


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
  """Yields the path of a temporary file that replaces `path` at the end.

  The file is synced to disk before it is renamed. After an error `path` is
  unchanged and the temporary file is deleted.
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
  """Writes a file completely or not at all, and syncs it to disk."""
  data = content.encode() if isinstance(content, str) else content
  with replacing(path) as temporary, open(temporary, 'wb') as file:
    file.write(data)


@contextlib.contextmanager
def creating(folder: str) -> Iterator[str]:
  """Yields the path of a temporary folder that becomes `folder` at the end.

  After an error it is deleted.

  Raises:
    InputError: `folder` exists or cannot be created.
  """
  if os.path.lexists(folder):
    raise InputError(f'{folder} exists: choose a new folder.')
  parent, name = os.path.split(os.path.abspath(folder))
  scratch = functools.partial(tempfile.TemporaryDirectory, prefix=f'.{name}.')
  with writing(folder), scratch(dir=parent) as temporary:
    complete = os.path.join(temporary, name)
    os.mkdir(complete)
    yield complete
    os.rename(complete, folder)


@contextlib.contextmanager
def reading(failure: str, *errors: type[Exception]) -> Iterator[None]:
  """Turns errors of reading and parsing into an InputError '`failure`: ...'.

  An InputError from the block is unchanged. `errors`: further types to convert.
  """
  wrong = (OSError, ValueError, TypeError, LookupError, AttributeError)
  try:
    yield
  except InputError:
    raise
  except (*wrong, ArithmeticError, RecursionError, *errors) as error:
    raise InputError(f'{failure}: {reason_of(error)}.') from None


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
  """Turns an OSError into an InputError: '`what` cannot be written: ...'."""
  try:
    yield
  except OSError as error:
    text = f'{what} cannot be written: {reason_of(error)}.'
    raise InputError(text) from None


def check_writable(folder: str) -> None:
  """Raises an InputError if a folder exists but cannot be written."""
  if os.path.lexists(folder):
    with writing(folder):
      tempfile.NamedTemporaryFile(dir=folder, prefix='.check.').close()


def to_json(value: Any, **options: Any) -> str:
  """Returns JSON that every parser accepts: NaN and infinities become null."""

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
  """Reads a file of JSON objects, one per line; [] if the file is missing.

  Ignores a partial last line, which a killed process leaves behind.
  """
  if not os.path.exists(path):
    return []
  failure = f'{path} cannot be read as lines of JSON (repair or move it)'
  with reading(failure), open(path) as file:
    lines = [line for line in file if line.endswith('\n')]
    # Parse one array: its errors name the line of the file, or the next one.
    objects = json.loads(f'[{",".join(lines)}]')
    if [*map(type, objects)] != [dict] * len(lines):
      raise ValueError('a line is not one object')
  return objects


@contextlib.contextmanager
def lock(
  folder: str, advice: str = 'stop it, or type another --workdir'
) -> Iterator[None]:
  """Locks a folder until the end of the block or of the process.

  The kernel releases the lock of a killed process, whatever the file contains.

  Raises:
    InputError: another process holds the lock (the message names the process
      and gives `advice`), or the lock file cannot be written.
  """
  path = os.path.join(folder, LOCK_FILE)
  with writing(path):
    file = open(path, 'a+')  # noqa: SIM115 (`writing` ends before `yield`)
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(
        f'{folder} is in use by {_read_owner(path)}: wait until it has ended,'
        f' {advice}.'
      ) from None
    except OSError as error:
      print(
        f'warning: {folder} cannot be locked ({error.strerror}). Make sure'
        ' that no second command uses it.',
        file=sys.stderr,
      )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    owner = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}
    with writing(path):
      file.truncate(0)
      file.write(json.dumps(owner) + '\n')
      file.flush()
    yield


def _read_owner(path: str) -> str:
  wrong = (OSError, ValueError, LookupError, TypeError)
  with contextlib.suppress(*wrong), open(path) as file:
    owner = json.load(file)
    return f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'
  return 'another process'
