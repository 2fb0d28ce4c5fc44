"""Devices to compile for without having them: TPU slices and virtual CPUs."""

import contextlib
import importlib.util
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from resnet.errors import InputError


class Chip(NamedTuple):
  """The maker's figures for a chip (docs.cloud.google.com/tpu/docs/NAME).

  Attributes:
    hbm_bytes: memory that libtpu leaves to a program.
    hbm_bytes_per_second: bandwidth of that memory.
    flops_per_second: peak in bfloat16; a multiply-add counts as two.
    ici_bytes_per_second: bandwidth to all neighbours, sent plus received.
    ring_multiple: an axis of the slice is a ring if its length is a multiple.
    shapes: the available slices, the smallest first.
  """

  hbm_bytes: float
  hbm_bytes_per_second: float
  flops_per_second: float
  ici_bytes_per_second: float
  ring_multiple: int
  shapes: str


_SHAPES_2D = '2x2 2x4 4x4 4x8 8x8 8x16 16x16'
# A single slice of v5p may be larger, up to 16x16x24.
_SHAPES_3D = (
  '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16'
)
# libtpu reserves some memory; its out-of-memory error states what is left.
CHIPS = {
  'v5e': Chip(15.75 * 2**30, 819e9, 197e12, 400e9, 16, _SHAPES_2D),
  'v5p': Chip(95.74 * 2**30, 2765e9, 459e12, 1200e9, 4, _SHAPES_3D),
  'v6e': Chip(31.25 * 2**30, 1638e9, 918e12, 800e9, 16, _SHAPES_2D),
}
_MAX_CPU_DEVICES = 512


class Topology(NamedTuple):
  """Devices to compile for; `chip` is None for virtual CPUs."""

  name: str
  devices: tuple[Any, ...]
  chip: Chip | None


def open_topology(name: str) -> Topology:
  """Returns a topology such as 'v5e:16x16' or 'cpu:8'.

  Must be called before JAX is used: it makes this process compute on the CPU,
  even on a machine with accelerators.
  """
  kind, _, shape = name.partition(':')
  jax.config.update('jax_platforms', 'cpu')
  if kind == 'cpu' and shape.isdecimal():
    # The number of devices is fixed once JAX is in use.
    with contextlib.suppress(RuntimeError):
      most = min(int(shape), _MAX_CPU_DEVICES)
      jax.config.update('jax_num_cpu_devices', most)
    devices = jax.devices('cpu')
    if not 1 <= int(shape) <= len(devices):
      raise InputError(
        f'--topology={name}: JAX has {len(devices)} CPU devices; type a number'
        f' from 1 to {len(devices)}.'
      )
    return Topology(name, tuple(devices[: int(shape)]), chip=None)
  chip = CHIPS.get(kind)
  if chip is None or shape not in chip.shapes.split():
    known = '; '.join(f'{x}: {chip.shapes}' for x, chip in CHIPS.items())
    raise InputError(
      f'--topology={name} does not exist. Choose from {known}; or cpu:N with'
      f' N up to {_MAX_CPU_DEVICES}.'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f'--topology={name} needs libtpu, the compiler for TPUs: type'
      " pip install 'jax[tpu]'"
    )
  # Otherwise libtpu asks a metadata server which slice it runs on. It ignores
  # TPU_ACCELERATOR_TYPE, but warns if it is not set.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
  # No chip is used, so several such processes may run at once.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # JAX writes programs for absent devices to its cache, but cannot read them.
  jax.config.update('jax_enable_compilation_cache', False)
  described = topologies.get_topology_desc(platform='tpu', topology_name=name)
  return Topology(name, tuple(described.devices), chip)
