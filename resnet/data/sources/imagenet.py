"""ImageNet (ILSVRC 2012) from its two tar files, without TensorFlow.

The training file is a tar with one tar per class, the validation file a flat
tar, whose labels come with TFDS. Records are read from the tars without
unpacking them.
"""

import dataclasses
import functools
import os
import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet.data.sources.base import Source
from resnet.errors import InputError, reason_of

NAME = 'imagenet2012'
TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VALIDATION_TAR = 'ILSVRC2012_img_val.tar'
SPLITS = {'train': TRAIN_TAR, 'validation': VALIDATION_TAR}
NUM_CLASSES, NUM_VALIDATION = 1000, 50_000
# An image in a tar; offset and size are in bytes.
_MEMBER = [('offset', 'i8'), ('size', 'i8'), ('label', 'i4'), ('name', 'S64')]


@dataclasses.dataclass(frozen=True)
class TarRecords:
  """Random access to the images of a tar.

  Attributes:
    path: path of the tar.
    members: place, label and name of each image, [N] of dtype _MEMBER.
  """

  path: str
  members: np.ndarray

  def __len__(self) -> int:
    return len(self.members)

  def __getitem__(self, key: int, /) -> dict[str, Any]:
    offset, size, label, name = self.members[key].tolist()
    with open(self.path, 'rb') as file:
      file.seek(offset)
      image = file.read(size)
    return {'image': image, 'label': label, 'file_name': name.decode()}


@functools.cache
def class_names(file: str = 'labels.txt') -> tuple[str, ...]:
  """Returns the WordNet ids in a file of TFDS; by default, one per label."""
  path = tfds.core.tfds_path(f'datasets/{NAME}/{file}')
  return tuple(path.read_text().split())


def validation_labels() -> tuple[str, ...]:
  """Returns the WordNet ids of the validation images, sorted by file name."""
  return class_names('validation_labels.txt')


def open_splits(folder: str, name: str) -> dict[str, Source]:
  """Returns the splits 'train' and 'validation' of a folder of tar files."""
  return {
    split: Source(
      name=name,
      split=split,
      num_classes=NUM_CLASSES,
      channels=3,
      records=open_tar(folder, split),
      class_names=class_names(),
    )
    for split in SPLITS
  }


def open_tar(folder: str, split: str) -> TarRecords:
  """Reads the table of contents of the tar of 'train' or 'validation'."""
  path = os.path.join(folder, SPLITS[split])
  try:
    with tarfile.open(path, 'r:') as tar:
      members = _train(path, tar) if split == 'train' else _validation(tar)
  except (tarfile.TarError, OSError, EOFError) as error:
    raise InputError(
      f'{path} is missing or truncated ({reason_of(error)}): fetch it and'
      ' compare its MD5 with the one on image-net.org.'
    ) from None
  return TarRecords(path, np.array(members, _MEMBER))


def _train(path: str, tar: tarfile.TarFile) -> list[tuple[int, int, int, str]]:
  members = []
  classes = {member.name: member for member in tar}
  if missing := sorted({*class_names()} - {name[:-4] for name in classes}):
    raise InputError(
      f'{path} holds {len(classes)} classes of {NUM_CLASSES} and lacks'
      f' {", ".join(missing[:3])} ...: it is truncated or the wrong file.'
    )
  with open(path, 'rb') as file:
    for label, name in enumerate(class_names()):
      file.seek(classes[f'{name}.tar'].offset_data)
      with tarfile.open(fileobj=file, mode='r:') as inner:
        members += [
          (member.offset_data, member.size, label, member.name)
          for member in inner
        ]
  return members


def _validation(tar: tarfile.TarFile) -> list[tuple[int, int, int, str]]:
  labels = validation_labels()
  order = {name: label for label, name in enumerate(class_names())}
  files = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
  if len(files) != len(labels):
    raise InputError(
      f'{VALIDATION_TAR} holds {len(files):,} files, expected'
      f' {len(labels):,}: it is truncated or the wrong file.'
    )
  return [
    (file.offset_data, file.size, order[label], os.path.basename(file.name))
    for file, label in zip(files, labels, strict=True)
  ]
