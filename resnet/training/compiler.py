"""What XLA is told, and where it keeps the programs that it has compiled."""

from collections.abc import Mapping
import functools
import hashlib
import os
import platform
import stat
from typing import Any

import jax

# Options of XLA by backend, each with its reason and its gain. Those that
# XLA_FLAGS or LIBTPU_INIT_ARGS name are left to the user, and experimental ones
# are left out where this XLA does not know them.
XLA_OPTIONS: Mapping[str, Mapping[str, Any]] = {
  'cpu': {
    # By default YNNPACK has the convolutions too. Without it, on two cores, a
    # step of ResNet-50 takes 0.56 of the time, one of ResNet-20 0.86.
    'xla_cpu_experimental_ynn_fusion_type': (
      'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    ),
  },
  'gpu': {
    # Gradients are reduced over the devices while the backward pass goes on.
    # On one device it changes nothing. Not measured.
    'xla_gpu_enable_latency_hiding_scheduler': True,
  },
  # What overlaps reductions there is the default of libtpu.
  'tpu': {},
}

# Those of a program that runs once, besides.
XLA_OPTIONS_ONCE: Mapping[str, Mapping[str, Any]] = {
  'cpu': {
    # LLVM would optimize the drawing of every kernel. Without, the first state
    # of a digits run is there in 0.4 of the time, and has the same bits.
    'xla_backend_optimization_level': 1,
  },
}


def options(backend: str, *, runs_once: bool = False) -> dict[str, Any]:
  """Returns `compiler_options` of `jax.jit` for a backend, 'cpu' or another.

  A program that runs once is to be there soon rather than to be fast.
  """
  wanted = dict(XLA_OPTIONS.get(backend, {}))
  if runs_once:
    wanted |= XLA_OPTIONS_ONCE.get(backend, {})
  given = ' '.join(
    os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
  )
  return {
    name: value
    for name, value in wanted.items()
    if f'--{name}=' not in given
    and ('experimental' not in name or _is_known(name, value))
  }


@functools.cache
def _is_known(name: str, value: Any) -> bool:
  """Returns whether this XLA has the option: it may go with any version."""
  program = jax.jit(lambda: 0, compiler_options={name: value})
  try:
    program.lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def keep_programs() -> str | None:
  """Lets JAX find the programs of earlier processes; compiles nothing.

  They lie in $JAX_COMPILATION_CACHE_DIR, or else in a private folder under
  $XDG_CACHE_HOME or ~/.cache, one for each kind of processor: programs for a
  CPU fit only that. They are machine code, so a folder that others may write
  to is not used.

  Returns:
    Why they are not kept, as a line to be shown; None where they are.
  """
  config: Any = jax.config  # Environment variables of the same names set it.
  if not config.jax_enable_compilation_cache:
    return None
  folder = config.jax_compilation_cache_dir
  if not folder:
    folder = os.path.join(_cache_home(), 'resnet', f'programs_{_processor()}')
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
  # By default only what took a second: of a small run that is not much.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return None


def _cache_home() -> str:
  # An empty or relative one counts as none (XDG Base Directory Specification).
  home = os.environ.get('XDG_CACHE_HOME', '')
  return home if os.path.isabs(home) else os.path.expanduser('~/.cache')


def _processor() -> str:
  """Returns a checksum of what the processor can do."""
  text = platform.machine()
  try:
    with open('/proc/cpuinfo') as file:
      text += next((x for x in file if x.startswith(('flags', 'Features'))), '')
  except OSError:
    text += platform.processor()  # Not Linux.
  return hashlib.sha256(text.encode()).hexdigest()[:12]
