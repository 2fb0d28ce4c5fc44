"""The interface of all sources: one split of labelled images."""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
from typing import Any, Protocol

import numpy as np

from resnet.errors import InputError, readable

Record = Mapping[str, Any]


class Records(Protocol):
  """The protocol of `Source.records`; a TFDS data source implements it."""

  def __len__(self) -> int: ...

  def __getitem__(self, key: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
  """Images uint8 [N, H, W, C] and labels [N] in memory, as records."""

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, key: int, /) -> dict[str, Any]:
    return {'image': self.images[key], 'label': int(self.labels[key])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """One split of labelled images.

  Attributes:
    name: name of the data set.
    split: name of the split in TFDS, such as 'train' or 'train[:90%]'.
    num_classes: labels are in 0 .. num_classes - 1.
    channels: number of image channels, 1 or 3.
    class_names: names of the labels in order, or None if unknown.
    records: random access to records with 'image' (PNG or JPEG bytes, or
      uint8 [H, W, C]) and 'label' (int).
    image_shape: [H, W, C] of all images, or None if it differs or is unknown.
  """

  name: str
  split: str
  num_classes: int
  channels: int
  records: Records
  class_names: tuple[str, ...] | None = None
  image_shape: tuple[int, int, int] | None = None

  def __len__(self) -> int:
    return len(self.records)

  def read(self, indices: Iterable[int]) -> list[Record]:
    """Returns the records at `indices`, in that order."""
    return [self.records[index] for index in indices]

  def fingerprint(self, num_records: int = 16) -> str:
    """Returns a checksum of up to `num_records` records, evenly spaced.

    It nearly always differs between sets, splits and shuffled orders. A change
    to a few records may go unnoticed.
    """
    indices = np.linspace(0, len(self) - 1, min(num_records, len(self)))
    digest = hashlib.sha256()
    for record in self.read(indices.astype(int).tolist()):
      digest.update(np.int64(record['label']).tobytes())
      digest.update(bytes(record['image']))
    return digest.hexdigest()[:12]

  def label(self, index: int, record: Record) -> int:
    """Returns the label of a record; an InputError names a wrong one."""
    label = int(record['label'])
    if not 0 <= label < self.num_classes:
      raise InputError(
        f'The label of {self.key(index, record)} is {label}; expected 0 to'
        f' {self.num_classes - 1}.'
      )
    return label

  def key(self, index: int, record: Record) -> str:
    """Returns a description of the record for messages."""
    name = readable(record.get('file_name', record.get('id', b'')))
    place = f'record {index} of {self.name}/{self.split}'
    return f'{place} ({name})' if name else place
