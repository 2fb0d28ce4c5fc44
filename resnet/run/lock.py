"""One command at a time in a folder."""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import sys

from resnet.errors import InputError

LOCK_FILE = '.lock'


class Lock:
  """Holds a folder until it is closed, or its process has ended somehow.

  The kernel drops the lock of a process that was killed, so the file that it
  leaves behind says nothing; a file system without locks is told.
  """

  def __init__(
    self, workdir: str, advice: str = 'stop it, or give another --workdir'
  ):
    """Takes the lock.

    Args:
      workdir: the folder.
      advice: what else to do than to wait, for a message.

    Raises:
      InputError: another process has it; the message says which. Or the file
        of the lock cannot be opened.
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
