"""Keeps the images of small sets on the devices.

Every device holds the images of both splits, in stored order. A batch is then a
list of indices, and each device takes the images of its rows from its own
memory.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math

import jax
import numpy as np

from resnet.data.augment.cache import ImageCache
from resnet.data.host.loader import LoaderOptions, read_ahead
from resnet.data.host.memory import available_bytes
from resnet.data.host.reader import LEFT_OUT, BatchReader, HostBatch
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError

# Share of a device's free memory; the state and the step need the rest.
_LARGEST_SHARE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedReader(BatchReader):
  """Returns the indices of a batch whose images are on the devices.

  Attributes:
    cache: the images of all N records.
    broken: the error of each broken image, by index.
  """

  cache: ImageCache
  broken: Mapping[int, str]

  def __call__(self, step: int) -> HostBatch:
    """Returns 'index' int32 [b]: N in rows without an image."""
    rows = np.full(self.row_count, len(self.source), np.int32)
    left_out: list[str] = []
    for row, index in enumerate(self.indices(step)):
      while index is not None and index in self.broken:
        left_out.append(self.broken[index])
        index = self.replacement(index)
      if index is not None:
        rows[row] = index
    return {'index': rows, LEFT_OUT: left_out} if left_out else {'index': rows}


def check_memory(num_bytes: int, sharding: jax.sharding.Sharding) -> None:
  """Raises an InputError if a replicated cache is too large for a device."""
  devices = sharding.addressable_devices
  stats = [device.memory_stats() or {} for device in devices]
  if all('bytes_limit' in x for x in stats):
    free = min(x['bytes_limit'] - x['bytes_in_use'] for x in stats)
  else:  # Virtual CPUs share the memory of the host.
    free = available_bytes() / len(devices)
  if num_bytes > _LARGEST_SHARE * free:
    raise InputError(
      f"data.cache='device' needs {num_bytes / 1e9:,.3f} GB on each device, but"
      f' may take {_LARGEST_SHARE:.0%} of its free {free / 1e9:,.3f} GB: type'
      ' --config.data.cache=None, or store smaller images'
      ' (python -m resnet.tools.prepare --raw --resize=N)'
    )


def fill_cache(
  reader: BatchReader,
  options: LoaderOptions,
  sharding: jax.sharding.Sharding,
  warnings: DataWarnings,
  advance: Callable[[int], object],
) -> CachedReader:
  """Puts the images of all records on the devices of a replicated `sharding`.

  The transform of the reader must draw no random numbers. `warnings` collects
  broken images; `advance` is called with numbers of images that were read.
  """
  count, size = len(reader.source), reader.row_count
  in_order = dataclasses.replace(
    reader, seed=None, sizes=None, batch_size=size, row_start=0
  )
  batches = read_ahead(
    in_order,
    options,
    first_step=0,
    num_steps=math.ceil(count / size),
    warnings=warnings,
  )
  shape = in_order.image_shape
  images = np.empty((count, math.prod(shape)), np.uint8)
  labels = np.empty(count, np.int32)
  broken: dict[int, str] = {}
  for start, batch in zip(range(0, count, size), batches, strict=True):
    errors = batch.pop(LEFT_OUT, [])
    warnings.report_bad_images(errors)
    mask = batch['mask'][: count - start]
    indices = start + np.flatnonzero(~mask)
    broken.update(zip(indices.tolist(), errors, strict=True))
    for whole, rows in ((images, batch['image']), (labels, batch['label'])):
      part = whole[start : start + size]
      part[:] = rows[: len(part)].reshape(part.shape)
    advance(len(mask))
  put = functools.partial(jax.make_array_from_process_local_data, sharding)
  cache = ImageCache(images=put(images), labels=put(labels), image_shape=shape)
  fields = {x.name: getattr(reader, x.name) for x in dataclasses.fields(reader)}
  return CachedReader(**fields, cache=cache, broken=broken)
