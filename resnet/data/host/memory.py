"""The host's memory: keeps what is freed, for speed; tells what is free."""

import contextlib
import ctypes
import functools
import math

# From malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Larger than a photograph and smaller than a batch, which uses huge pages.
_MMAP_BYTES = 2**23
_KEPT_BYTES = 2**27


@functools.cache
def keep_freed_memory() -> None:
  """Lets glibc keep up to 128 MiB of freed memory per thread, for reuse.

  By default glibc returns the memory of each image to the system, which clears
  every page again for the next image. On a virtual machine that takes a tenth
  of the time per photograph. With other C libraries this does nothing.
  """
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def available_bytes() -> float:
  """Returns the host's free memory, or infinity if the system does not say."""
  with contextlib.suppress(OSError), open('/proc/meminfo') as file:
    for line in file:
      if line.startswith('MemAvailable:'):
        return 1024.0 * int(line.split()[1])
  return math.inf
