"""One mesh axis, `data`, over all devices of all processes."""

import dataclasses
import functools

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

DATA_AXIS = 'data'


@dataclasses.dataclass(frozen=True)
class DataSharding:
  """Batches are split over the mesh, everything else is replicated.

  One CPU, eight virtual ones, GPUs and TPUs are the same to the caller.
  """

  mesh: Mesh

  @functools.cached_property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @functools.cached_property
  def batch(self) -> NamedSharding:
    """The leading dim is split over all devices."""
    return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

  def process_rows(self, batch_size: int) -> tuple[int, int]:
    """Returns (first row, number of rows) of a global batch held here.

    The devices of a process are neighbours in the mesh, so its rows are too.
    """
    rows = batch_size // self.mesh.devices.size
    processes = [d.process_index for d in self.mesh.devices.flat]
    first = processes.index(jax.process_index())
    return first * rows, processes.count(jax.process_index()) * rows


def create_sharding() -> DataSharding:
  """Returns the sharding over all devices, ordered by process."""
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  mesh = Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
  return DataSharding(mesh)
