"""Compiler options of XLA, by backend."""

from collections.abc import Mapping
import functools
import os
from typing import Any

import jax

# Options by backend. `options` leaves out those that the user sets in XLA_FLAGS
# or LIBTPU_INIT_ARGS, and experimental ones that this version of XLA lacks.
XLA_OPTIONS: Mapping[str, Mapping[str, Any]] = {
  'cpu': {
    # By default XLA also uses YNNPACK for convolutions. On two cores, without
    # it, a step takes 0.56 of the time for ResNet-50, 0.86 for ResNet-20.
    'xla_cpu_experimental_ynn_fusion_type': (
      'LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    ),
    # By default XLA removes `lax.optimization_barrier` before it fuses
    # operations. See `resnet.models.convolution`.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
  },
  'gpu': {
    # Overlaps the all-reduce of gradients with the backward pass. No effect on
    # one device; not measured on several.
    'xla_gpu_enable_latency_hiding_scheduler': True,
  },
  # None for TPUs: no option tried overlaps the all-reduces (docs/pods.md).
}

# More options for a program that runs only once.
XLA_OPTIONS_ONCE: Mapping[str, Mapping[str, Any]] = {
  'cpu': {
    # At this lower optimization level of LLVM, creating the state of
    # configs/digits.py takes 0.4 of the time and gives the same bits.
    'xla_backend_optimization_level': 1,
  },
}


def options(backend: str, *, runs_once: bool = False) -> dict[str, Any]:
  """Returns the `compiler_options` of `jax.jit` for a backend, such as 'cpu'.

  With `runs_once` they favour a short compilation over a fast program.
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
  """Returns whether this version of XLA accepts the option."""
  program = jax.jit(lambda: 0, compiler_options={name: value})
  try:
    program.lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
