"""ImageNet (ILSVRC 2012) from its two tar files, without TensorFlow.

The training file is a tar of a tar a class, the validation file a flat tar; the
labels of the latter come with TFDS. Nothing is unpacked: records are read where
they lie.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
import tarfile
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet.errors import InputError

NAME = 'imagenet2012'
TRAIN_TAR = 'ILSVRC2012_img_train.tar'
VALIDATION_TAR = 'ILSVRC2012_img_val.tar'
SPLITS = {'train': TRAIN_TAR, 'validation': VALIDATION_TAR}
NUM_CLASSES, NUM_VALIDATION = 1000, 50_000
# Where people put the files, below the folder that they name.
_PLACES = ('', 'downloads/manual', 'manual', 'downloads')


@dataclasses.dataclass(frozen=True)
class TarRecords:
  """Random access to the images of a tar.

  Attributes:
    path: of the tar.
    offsets: of the images in it, bytes, [N] int64.
    sizes: bytes, [N] int64.
    labels: [N] int32.
    names: of the files.
  """

  path: str
  offsets: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray
  names: Sequence[str]

  def __len__(self) -> int:
    return len(self.names)

  def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]:
    with open(self.path, 'rb') as file:
      return [
        {
          'image': os.pread(
            file.fileno(), int(self.sizes[key]), int(self.offsets[key])
          ),
          'label': int(self.labels[key]),
          'file_name': self.names[key],
        }
        for key in keys
      ]

  def num_bytes(self) -> int:
    return int(self.sizes.sum())


@functools.cache
def class_names() -> tuple[str, ...]:
  """Returns the 1,000 WordNet ids, in the order of the labels."""
  return _lines('labels.txt')


def validation_labels() -> tuple[str, ...]:
  """Returns the WordNet ids of the validation images, sorted by file name."""
  return _lines('validation_labels.txt')


def _lines(name: str) -> tuple[str, ...]:
  path = tfds.core.tfds_path(f'datasets/{NAME}/{name}')
  return tuple(path.read_text().split())


def open_tar(folder: str, split: str) -> TarRecords:
  """Reads the table of contents of a split's tar.

  Args:
    folder: that holds the tar files, or a folder above as TFDS has it.
    split: 'train' or 'validation'.

  Raises:
    InputError: there is no such tar, or it is damaged or another one.
  """
  path = _find(folder, SPLITS[split])
  if path is None:
    found = what_is_there(folder) or _listing(folder)
    raise InputError(f'{folder} holds no {SPLITS[split]}. {found}')
  try:
    with tarfile.open(path, 'r:') as tar:
      members = _train(path, tar) if split == 'train' else _validation(tar)
  except (tarfile.TarError, OSError, EOFError) as error:
    raise InputError(
      f'{path} is damaged or not whole ({error}): fetch it again and compare'
      ' its MD5 with the one on image-net.org.'
    ) from None
  offsets, sizes, labels, names = zip(*members, strict=True)
  return TarRecords(
    path,
    np.array(offsets, np.int64),
    np.array(sizes, np.int64),
    np.array(labels, np.int32),
    names,
  )


def _train(path: str, tar: tarfile.TarFile) -> list[tuple[int, int, int, str]]:
  members = []
  order = {name: label for label, name in enumerate(class_names())}
  classes = {member.name: member for member in tar}
  missing = sorted(set(order) - {name[:-4] for name in classes})
  if missing:
    raise InputError(
      f'{path} holds {len(classes)} classes of {NUM_CLASSES}; missing are'
      f' {", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}: it is'
      ' not whole, or another file under this name.'
    )
  with open(path, 'rb') as file:
    for name, label in order.items():
      start = classes[f'{name}.tar'].offset_data
      file.seek(start)
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
      f' {len(labels):,}: it is not whole, or another file.'
    )
  return [
    (file.offset_data, file.size, order[label], os.path.basename(file.name))
    for file, label in zip(files, labels, strict=True)
  ]


def _find(folder: str, name: str) -> str | None:
  paths = (os.path.join(folder, place, name) for place in _PLACES)
  return next(filter(os.path.isfile, paths), None)


def what_is_there(folder: str) -> str | None:
  """Returns what of ImageNet lies in a folder and what to do; None: nothing."""
  paths = {split: _find(folder, tar) for split, tar in SPLITS.items()}
  found = [path for path in paths.values() if path]
  if len(found) == len(SPLITS):
    return (
      f'The tar files are there: {", ".join(found)}. Prepare them: python -m'
      ' resnet.tools.prepare --from=imagenet'
      f' --source={os.path.dirname(found[0])} --out={folder}'
    )
  if found:
    missing = [SPLITS[split] for split, path in paths.items() if not path]
    return (
      f'{found[0]} is there, but not {missing[0]}: put both into one folder.'
    )
  for place in ('', *_PLACES[1:], 'ILSVRC/Data/CLS-LOC', 'extracted'):
    root = os.path.join(folder, place)
    train = os.path.join(root, 'train')
    if os.path.isdir(os.path.join(train, 'n01440764')):
      return (
        f'There are extracted folders in {train}: use them as they are with'
        f' --config.data.name=folder --config.data.data_dir={root or "."}, or'
        ' prepare them: python -m resnet.tools.prepare --from=folder'
        f' --source={root} --out=DIR'
      )
    if os.path.isdir(os.path.join(root, 'n01440764')):
      return (
        f'There are class folders of ImageNet in {root}: move them into'
        f' {train}, the validation images into class folders in'
        f' {os.path.join(root, "val")}, and use --config.data.name=folder.'
      )
    if os.path.isfile(os.path.join(root, 'n01440764.tar')):
      return (
        f'There are tar files of single classes in {root}: the file'
        f' {TRAIN_TAR} itself is needed, not unpacked.'
      )
  return None


def _listing(folder: str) -> str:
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    return f'It cannot be listed: {error.strerror or error}.'
  shown = ', '.join(names[:5]) + (' ...' if len(names) > 5 else '')
  return f'It holds: {shown or "nothing"}.'
