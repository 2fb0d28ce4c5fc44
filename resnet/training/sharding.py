"""How arrays lie on the devices: mesh axes `data` and `fsdp`."""

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
  """Batches are split over the whole mesh, the state over axis `fsdp`.

  One CPU, eight virtual ones, GPUs and TPUs are the same to the caller. Over
  `data` the state is replicated; over `fsdp` each device holds a part of each
  kernel and of its optimizer state (Rajbhandari et al. 2020, ZeRO), gathers
  the kernels for the forward and backward pass, and updates its part alone.
  """

  mesh: Mesh

  @functools.cached_property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @functools.cached_property
  def batch(self) -> NamedSharding:
    """The leading dim is split over all devices."""
    return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

  @property
  def backend(self) -> str:
    """'cpu', 'gpu' or 'tpu'."""
    return self.mesh.devices.flat[0].platform

  @property
  def fsdp(self) -> int:
    """Parts that the state is split into; 1: it is replicated."""
    return dict(self.mesh.shape).get(FSDP_AXIS, 1)

  def of_state(self, tree: Any) -> Any:
    """Returns a tree of shardings for arrays or shapes of a state.

    Kernels and what has their shape are split in the last of their largest
    dims that `fsdp` divides. Scales, biases and statistics are replicated, as
    is a kernel without such a dim: each part would cost a collective, and all
    together they are under 1 % of the bytes of an ImageNet network.
    """
    return jax.tree.map(self._of_leaf, tree)

  def _of_leaf(self, leaf: Any) -> NamedSharding:
    dims = [d for d in range(leaf.ndim) if leaf.shape[d] % self.fsdp == 0]
    if self.fsdp == 1 or leaf.ndim < 2 or not dims:
      return self.replicated
    dim = max(dims, key=lambda d: (leaf.shape[d], d))
    return NamedSharding(self.mesh, PartitionSpec(*[None] * dim, FSDP_AXIS))

  def gather(self, tree: Any) -> Any:
    """Within a jitted function: each device holds the whole of a tree."""
    return tree if self.fsdp == 1 else self.replicate(tree)

  def replicate(self, tree: Any) -> Any:
    """Within a jitted function: each device makes the whole of a tree."""
    return jax.lax.with_sharding_constraint(tree, self.replicated)

  def split(self, tree: Any) -> Any:
    """Within a jitted function: the tree lies as a state does."""
    if self.fsdp == 1:
      return tree
    return jax.lax.with_sharding_constraint(tree, self.of_state(tree))

  def process_rows(self, batch_size: int) -> tuple[int, int]:
    """Returns (first row, number of rows) of a global batch held here.

    The devices of a process are neighbours in the mesh, so its rows are too.
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
  """Returns the sharding over devices, ordered by process.

  Args:
    devices: of all processes; None: all that JAX sees.
    data: size of axis `data`; None: what is left of the devices.
    fsdp: size of axis `fsdp`: neighbours, so that its traffic stays near.

  Raises:
    InputError: the axes do not take up all devices.
  """
  if devices is None:
    devices = backend.devices()
  count = len(devices)
  if fsdp < 1 or count % fsdp:
    sizes = [n for n in range(1, count + 1) if count % n == 0]
    raise InputError(
      f'sharding.fsdp={fsdp} does not divide the {count} devices: take one of'
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
