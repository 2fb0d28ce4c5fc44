"""Devices that are not there, to compile for: TPU slices and virtual CPUs."""

import contextlib
import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from resnet.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What the maker says of a chip (docs.cloud.google.com/tpu/docs/NAME).

  Attributes:
    hbm_bytes: of memory that libtpu gives to a program.
    hbm_bytes_per_second: of its memory.
    flops_per_second: bfloat16, peak; a multiply-add is two.
    ici_bytes_per_second: to its neighbours, both directions together.
    shapes: of the slices that there are, the smallest first.
  """

  hbm_bytes: float
  hbm_bytes_per_second: float
  flops_per_second: float
  ici_bytes_per_second: float
  shapes: tuple[str, ...]


_SHAPES_2D = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
# A single slice of v5p may be larger, up to 16x16x24.
_SHAPES_3D = (
  '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16'
)
# Of the memory, libtpu keeps some: the figures are those of its own error.
CHIPS = {
  'v5e': Chip(
    hbm_bytes=15.75 * 2**30,
    hbm_bytes_per_second=819e9,
    flops_per_second=197e12,
    ici_bytes_per_second=400e9,
    shapes=_SHAPES_2D,
  ),
  'v5p': Chip(
    hbm_bytes=95.74 * 2**30,
    hbm_bytes_per_second=2765e9,
    flops_per_second=459e12,
    ici_bytes_per_second=1200e9,
    shapes=tuple(_SHAPES_3D.split()),
  ),
  'v6e': Chip(
    hbm_bytes=31.25 * 2**30,
    hbm_bytes_per_second=1638e9,
    flops_per_second=918e12,
    ici_bytes_per_second=800e9,
    shapes=_SHAPES_2D,
  ),
}
_MAX_CPU_DEVICES = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices to compile for; `chip` is None for virtual CPUs."""

  name: str
  devices: tuple[Any, ...]
  chip: Chip | None


def open_topology(name: str) -> Topology:
  """Returns a topology: 'v5e:16x16', 'cpu:8'. To be called before JAX is used.

  This process then computes on its CPU, also on a machine with accelerators.

  Raises:
    InputError: there is no such topology, or no libtpu to compile for it.
  """
  kind, _, shape = name.partition(':')
  jax.config.update('jax_platforms', 'cpu')
  if kind == 'cpu' and shape.isdecimal():
    return Topology(name=name, devices=_cpu_devices(int(shape)), chip=None)
  chip = CHIPS.get(kind)
  if chip is None or shape not in chip.shapes:
    there_are = '; '.join(
      f'{kind}: {" ".join(chip.shapes)}' for kind, chip in CHIPS.items()
    )
    raise InputError(
      f'--topology={name} does not exist. There are {there_are}; and cpu:N with'
      f' N up to {_MAX_CPU_DEVICES}.'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f'--topology={name} needs the compiler for TPUs, libtpu, which is not'
      " installed: pip install 'jax[tpu]'"
    )
  # Without these libtpu asks the network for the slice that it runs on. The
  # type is that of no slice here, but libtpu warns where it knows none.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
  # Nor is a chip taken: two of these may run side by side.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # JAX writes such programs into its cache, but cannot read them from there.
  jax.config.update('jax_enable_compilation_cache', False)
  described = topologies.get_topology_desc(platform='tpu', topology_name=name)
  return Topology(name=name, devices=tuple(described.devices), chip=chip)


def _cpu_devices(count: int) -> tuple[Any, ...]:
  if not 1 <= count <= _MAX_CPU_DEVICES:
    raise InputError(
      f'--topology=cpu:{count}: 1 to {_MAX_CPU_DEVICES} devices.'
    )
  # Where JAX is in use already, it has as many as it has.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', count)
  devices = jax.devices('cpu')
  if len(devices) < count:
    raise InputError(
      f'--topology=cpu:{count}: JAX has begun with {len(devices)} devices.'
    )
  return tuple(devices[:count])
