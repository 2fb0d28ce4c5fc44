"""Sharding of batches and state over the mesh axes `data` and `fsdp`."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from resnet import backend
from resnet.errors import InputError

DATA_AXIS, FSDP_AXIS = 'data', 'fsdp'


@dataclasses.dataclass(frozen=True)
class DataSharding:
  """Splits batches over the whole mesh, and the state over the axis `fsdp`.

  The state is replicated over the axis `data`. Over `fsdp` each device holds a
  part of each kernel and of its optimizer state (Rajbhandari et al. 2020,
  ZeRO), gathers the kernels for the forward and backward pass, and updates only
  its part. The same code runs on CPUs, GPUs and TPUs.
  """

  mesh: Mesh

  @functools.cached_property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @functools.cached_property
  def batch(self) -> NamedSharding:
    """The sharding of batches: the first dim is split over all devices."""
    return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

  @property
  def backend(self) -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return self.mesh.devices.flat[0].platform

  @property
  def fsdp(self) -> int:
    """Number of parts that the state is split into; 1: it is replicated."""
    return self.mesh.shape[FSDP_AXIS]

  def of_state(self, tree: Any) -> Any:
    """Returns the sharding of each array of a state, given arrays or shapes.

    Arrays of two or more dims (kernels and their optimizer state) are split
    along their largest dim that is divisible by `fsdp`, or along the last such
    dim if several are equally large. Other arrays are replicated: each would
    need a collective of its own, and together they are less than 1 % of the
    bytes of an ImageNet network.
    """
    return jax.tree.map(self._of_leaf, tree)

  def _of_leaf(self, leaf: Any) -> NamedSharding:
    dims = [d for d in range(leaf.ndim) if leaf.shape[d] % self.fsdp == 0]
    if self.fsdp == 1 or leaf.ndim < 2 or not dims:
      return self.replicated
    dim = max(dims, key=lambda d: (leaf.shape[d], d))
    return NamedSharding(self.mesh, PartitionSpec(*[None] * dim, FSDP_AXIS))

  def gather(self, tree: Any) -> Any:
    """Gathers a split state on each device, within a jitted function."""
    return tree if self.fsdp == 1 else self.replicate(tree)

  def replicate(self, tree: Any) -> Any:
    """Replicates a tree on all devices, within a jitted function."""
    return jax.lax.with_sharding_constraint(tree, self.replicated)

  def split(self, tree: Any) -> Any:
    """Splits a tree by the rule of `of_state`, within a jitted function."""
    if self.fsdp == 1:
      return tree
    return jax.lax.with_sharding_constraint(tree, self.of_state(tree))

  def process_rows(self, batch_size: int) -> tuple[int, int]:
    """Returns (first row, number of rows) of this process in a global batch.

    The rows of a process are contiguous, because the devices of the mesh are
    sorted by process.
    """
    rows = batch_size // self.mesh.devices.size
    processes = [d.process_index for d in self.mesh.devices.flat]
    first = processes.index(jax.process_index())
    return first * rows, processes.count(jax.process_index()) * rows


def create_sharding(
  devices: Sequence[Any] | None = None,
  *,
  data: int | None = None,
  fsdp: int = 1,
) -> DataSharding:
  """Creates the sharding over devices, which it sorts by process.

  Args:
    devices: devices of all processes; None: all that JAX sees.
    data: size of the axis `data`; None: number of devices / fsdp.
    fsdp: size of the axis `fsdp`. Devices along it are neighbours in the sorted
      order, for fast communication.

  Raises:
    InputError: the product of the sizes is not the number of devices.
  """
  if devices is None:
    devices = backend.devices()
  count = len(devices)
  if fsdp < 1 or count % fsdp:
    sizes = [n for n in range(1, count + 1) if count % n == 0]
    raise InputError(
      f'sharding.fsdp={fsdp} does not divide the {count} devices: use one of'
      f' {", ".join(map(str, sizes))}.'
    )
  if data not in (None, count // fsdp):
    raise InputError(
      f'sharding.data={data} times sharding.fsdp={fsdp} is not the number of'
      f' devices, {count}: leave sharding.data out, or give'
      f' --config.sharding.data={count // fsdp}'
    )
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  mesh = Mesh(
    np.array(ordered).reshape(count // fsdp, fsdp),
    (DATA_AXIS, FSDP_AXIS),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )
  return DataSharding(mesh)
