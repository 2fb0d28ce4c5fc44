"""The environment of the programs that tests start."""

import atexit
import functools
import os
import tempfile


def environment(
  *, devices: int = 1, keep_programs: bool = True, **others: str
) -> dict[str, str]:
  """Returns that of a program with so many devices, and other variables.

  Most of a small run's time is the compiler's, so what it has made is kept for
  the next program of this process. Not for one that is killed while it may
  compile, nor for those that run at the same time, except the processes of one
  run, of which only the first writes: JAX does not write atomically.
  """
  flag = f'--xla_force_host_platform_device_count={devices}'
  kept = {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': _folder(),
  }
  return {
    **os.environ,
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {flag}',
    **(kept if keep_programs else {}),
    **others,
  }


@functools.cache
def _folder() -> str:
  folder = tempfile.TemporaryDirectory()
  atexit.register(folder.cleanup)
  return folder.name
