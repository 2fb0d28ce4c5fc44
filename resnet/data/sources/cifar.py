"""CIFAR-10 and CIFAR-100 from their binary archives (Krizhevsky 2009).

The format is that of https://www.cs.toronto.edu/~kriz/cifar.html: a record has
one byte of label, or two (coarse, fine), and the planes of red, green and blue
of 32 x 32 pixels. The pickled version is never read: unpickling runs code.
"""

import os
import pathlib
import tarfile
import zlib

import numpy as np

from resnet.data.sources.base import ArrayRecords, Source
from resnet.errors import InputError

_SIDE = 32
# The files of each split, the file of the class names, and the bytes of labels.
_SETS = {
  'cifar10': (
    {
      'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
      'test': ['test_batch.bin'],
    },
    'batches.meta.txt',
    1,
  ),
  'cifar100': (
    {'train': ['train.bin'], 'test': ['test.bin']},
    'fine_label_names.txt',
    2,
  ),
}


def default_name(path: str) -> str:
  """Returns 'cifar10' or 'cifar100', by the name of the archive or folder."""
  return 'cifar100' if '100' in os.path.basename(path) else 'cifar10'


def open_splits(path: str, name: str) -> dict[str, Source]:
  """Returns the splits 'train' and 'test'; labels are the fine ones."""
  files = _read(path)
  kind = next((kind for kind, own in _SETS.items() if own[1] in files), None)
  if kind is None:
    raise InputError(
      f'{path} is not the binary version of CIFAR: fetch'
      ' cifar-10-binary.tar.gz or cifar-100-binary.tar.gz from'
      ' https://www.cs.toronto.edu/~kriz/cifar.html'
    )
  if name != kind and name in _SETS:
    raise InputError(f'{path} is {kind}: --name={kind}')
  splits, names_file, label_bytes = _SETS[kind]
  class_names = tuple(files[names_file].decode().split())
  return {
    split: Source(
      name=name,
      split=split,
      num_classes=len(class_names),
      channels=3,
      records=_records(path, files, parts, label_bytes),
      class_names=class_names,
      image_shape=(_SIDE, _SIDE, 3),
    )
    for split, parts in splits.items()
  }


def _read(path: str) -> dict[str, bytes]:
  """Returns the content of the files of a folder or an archive, by name."""
  files = {}
  try:
    if os.path.isdir(path):
      for entry in filter(pathlib.Path.is_file, pathlib.Path(path).iterdir()):
        files[entry.name] = entry.read_bytes()
      return files
    with tarfile.open(path) as tar:
      for member in tar:
        if (content := tar.extractfile(member)) is not None:
          files[os.path.basename(member.name)] = content.read()
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise InputError(
      f'{path} cannot be read: {error}. Expected a binary archive of CIFAR,'
      ' whole, or the folder that is in it.'
    ) from None
  return files


def _records(
  path: str, files: dict[str, bytes], names: list[str], label_bytes: int
) -> ArrayRecords:
  size = label_bytes + 3 * _SIDE**2
  for name in names:
    length = len(files.get(name, b''))
    if not length or length % size:
      raise InputError(
        f'{path}: {name} is missing or not whole: it has {length:,} bytes,'
        f' expected a multiple of {size:,}. Fetch the archive again.'
      )
  data = np.frombuffer(b''.join(files[name] for name in names), np.uint8)
  data = data.reshape(-1, size)
  planes = data[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
  images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
  return ArrayRecords(images, data[:, label_bytes - 1])
