"""The options of XLA, by backend."""

from collections.abc import Mapping
import functools
import os
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
    # Gradients are reduced over the devices during the backward pass.
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
