"""Keeps compiled programs on disk for later processes."""

import hashlib
import os
import platform
import stat
from typing import Any

import jax


def keep_programs() -> str | None:
  """Makes JAX reuse the compiled programs of earlier processes.

  They are stored in $JAX_COMPILATION_CACHE_DIR, by default in a folder for this
  kind of processor under $XDG_CACHE_HOME or ~/.cache. The default folder is not
  used if others may write to it, because programs are machine code.

  Returns:
    A message if the folder cannot be used, else None.
  """
  config: Any = jax.config  # Environment variables of the same names set it.
  if not config.jax_enable_compilation_cache:
    return None
  folder = config.jax_compilation_cache_dir
  if not folder:
    home = os.environ.get('XDG_CACHE_HOME', '')
    # The XDG Base Directory Specification ignores an empty or relative path.
    home = home if os.path.isabs(home) else os.path.expanduser('~/.cache')
    folder = os.path.join(home, 'resnet', f'programs_{_processor()}')
    try:
      os.makedirs(folder, mode=0o700, exist_ok=True)
      found = os.stat(folder)
    except OSError as error:
      return f'Compiled programs are not kept: {folder}: {error.strerror}.'
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid != os.getuid() or others_write:
      return (
        f'Compiled programs are not kept: others may write to {folder}. Remove'
        ' it, or name a private one in JAX_COMPILATION_CACHE_DIR.'
      )
    jax.config.update('jax_compilation_cache_dir', folder)
  # JAX caches only compilations longer than one second; cache all of them.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return None


def _processor() -> str:
  """Returns a checksum of the processor's instruction sets."""
  text = platform.machine()
  try:
    with open('/proc/cpuinfo') as file:
      text += next((x for x in file if x.startswith(('flags', 'Features'))), '')
  except OSError:
    text += platform.processor()  # Not Linux.
  return hashlib.sha256(text.encode()).hexdigest()[:12]
