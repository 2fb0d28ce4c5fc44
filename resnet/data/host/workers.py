"""Prepares and ends data worker processes, and describes why they died."""

import atexit
import functools
import math
import mmap
import multiprocessing
from multiprocessing import resource_tracker
import os
import re
import signal
import sys
import tempfile
import threading

from resnet.errors import InputError

_SHARED_MEMORY = '/dev/shm'

# Python's resource tracker frees what a killed worker left behind. Its warning
# on stderr would follow, and distract from, the run's one-line error.
_QUIET = 'ignore:resource_tracker:UserWarning'


def check_shared_memory(num_bytes: int = 0) -> None:
  """Raises an InputError if /dev/shm has no room for `num_bytes` and locks."""
  if sys.platform != 'linux':
    return
  try:
    with tempfile.TemporaryFile(dir=_SHARED_MEMORY) as file:
      file.write(bytes(mmap.PAGESIZE))
      file.flush()
      state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    if free >= num_bytes:
      return
    problem = f'has only {free / 1e6:,.0f} MB free'
  except OSError as error:
    problem = f'cannot be written: {error.strerror}'
  needed = max(num_bytes, 2**20)  # Each lock takes a page.
  raise InputError(
    f'{_SHARED_MEMORY}, the memory that processes share, {problem};'
    f' {needed / 1e6:,.0f} MB are needed. Start a container with'
    f' --shm-size={max(64, math.ceil(2 * needed / 1e6))}m'
    + (', or set --config.data.num_workers=0' if num_bytes else '')
  )


@functools.cache
def prepare() -> None:
  """Prepares this process before it starts its first worker."""
  sys.warnoptions.append(_QUIET)  # This affects new processes only.
  atexit.register(_kill_workers)
  # The resource tracker ignores the signals that end a run, except SIGHUP.
  # Block that while it starts, because it inherits the signal mask.
  previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
  resource_tracker.ensure_running()
  signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kill_workers() -> None:
  """Kills the remaining workers at exit, or else Python waits for them."""
  for child in multiprocessing.active_children():
    child.kill()


def end_with_parent(index: int, count: int) -> None:
  """Makes a new worker end with its parent, even if the parent is killed.

  Ctrl-C, a closed terminal and schedulers signal all processes of a run. The
  workers ignore these signals: the parent needs batches until it has saved.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  if parent is not None:

    def wait() -> None:
      parent.join()
      os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def describe_exit(error: RuntimeError) -> str | None:
  """Returns how a worker ended, or None if the error is not about a worker."""
  # Grain has no exception class for a dead worker.
  match = re.search(r'terminated unexpectedly.*code (-?\d+)', str(error))
  if match is None:
    return None
  code, cause = int(match[1]), ''
  if code >= 0:
    return f'A data worker process ended with exit code {code}'
  if code == -signal.SIGKILL:
    cause = ', most likely because the machine ran out of memory'
  names = {int(number): number.name for number in signal.Signals}
  name = names.get(-code, f'signal {-code}')
  return f'A data worker process was killed by {name}{cause}'
