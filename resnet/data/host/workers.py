"""Data worker processes: that they end, and what is said of their death."""

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

# For Python's process that frees what a killed one has left behind: it does so
# and says so, on stderr, below the one line that a person should read.
_QUIET = 'ignore:resource_tracker:UserWarning'


def check_shared_memory(num_bytes: int = 0) -> None:
  """Checks that processes and threads can share so much memory, and locks."""
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
    problem = f'has {free / 1e6:,.0f} MB free'
  except OSError as error:
    problem = f'cannot be written: {error.strerror}'
  needed = max(num_bytes, 2**20)  # Locks take a page each.
  raise InputError(
    f'{_SHARED_MEMORY}, the shared memory of processes, {problem};'
    f' {needed / 1e6:,.0f} MB are needed. In a container start it with'
    f' --shm-size={max(64, math.ceil(2 * needed / 1e6))}m'
    + ('' if not num_bytes else ', or read with --config.data.num_workers=0')
  )


@functools.cache
def prepare() -> None:
  """Prepares this process for workers; before the first one."""
  sys.warnoptions.append(_QUIET)  # Of new processes: this one's are fixed.
  atexit.register(_kill)
  # Python's process that frees what a killed one has left behind ignores the
  # signals that end a run, except this one; it inherits what is blocked here.
  previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
  resource_tracker.ensure_running()
  signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _kill() -> None:
  """Ends workers that are left at exit: Python would wait for them."""
  for child in multiprocessing.active_children():
    child.kill()


def end_with_parent(index: int, count: int) -> None:
  """Makes a new worker end with the process that began it, even if killed.

  Ctrl-C, a closed terminal and schedulers signal all processes of a run at
  once: that is for the one that began it, which saves, and needs batches until
  then.
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
  """Returns how a worker ended, if Grain's error says so; None: it does not."""
  # Grain has no class for it.
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
