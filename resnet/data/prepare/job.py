"""What `prepare` writes, and whether it fits on the disk."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet.data.prepare.encoding import Encoding
from resnet.data.sources.base import Source
from resnet.errors import InputError

# For the estimate; the second are bytes of a record besides the image.
_NUM_SAMPLES, _RECORD_BYTES = 32, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A set to be written.

  Attributes:
    name: of the set, as TFDS has it.
    folder: NAME/VERSION, where it will be.
    splits: what to write, by name; all have the same classes.
    encoding: how images are stored.
    origin: what the images come from, in words and numbers; an unfinished set
      is continued only where it is the same.
    skip_bad: leave broken images out instead of stopping.
  """

  name: str
  folder: str
  splits: Mapping[str, Source]
  encoding: Encoding
  origin: Mapping[str, Any]
  skip_bad: bool = False

  @property
  def unfinished(self) -> pathlib.Path:
    """The folder of the set until it is complete."""
    return pathlib.Path(f'{self.folder}.incomplete')

  @property
  def first(self) -> Source:
    """The first split, for what all splits have in common."""
    return next(iter(self.splits.values()))

  @functools.cached_property
  def num_bytes(self) -> int:
    """About how much disk the set will take, from a few images."""
    total = 0.0
    for source in self.splits.values():
      indices = np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int)
      sizes = []
      for record in source.read(sorted(set(indices.tolist()))):
        # A broken image is reported when it is written.
        with contextlib.suppress(ValueError):
          image: Any = self.encoding.encode(record['image'])
          sizes.append(memoryview(image).nbytes + _RECORD_BYTES)
      total += len(source) * float(np.mean(sizes or [0]))
    return int(total)

  @functools.cached_property
  def features(self) -> Any:
    """What a record holds, as TFDS has it."""
    image: Any = tfds.features.Image(shape=(None, None, self.encoding.channels))
    if self.encoding.raw:
      pixels: Any = self.encoding.encode(self.first.read([0])[0]['image'])
      image = tfds.features.Tensor(
        shape=pixels.shape, dtype=np.uint8, encoding='bytes'
      )
    names = self.first.class_names
    label = tfds.features.ClassLabel(
      names=names and list(names),
      num_classes=None if names else self.first.num_classes,
    )
    return tfds.features.FeaturesDict(
      {'image': image, 'label': label, 'file_name': tfds.features.Text()}
    )


def check_disk(job: Job) -> None:
  """Checks, before anything is written, that the set will fit."""
  written = job.unfinished.glob('*.array_record-*')
  needed = 1.05 * job.num_bytes - sum(path.stat().st_size for path in written)
  folder = next(filter(os.path.exists, job.unfinished.absolute().parents))
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise InputError(
      f'{job.folder} needs about {needed / 1e9:,.1f} GB and'
      f' {free / 1e9:,.1f} GB are free: name another --out, or store less'
      ' (--resize=256).'
    )
