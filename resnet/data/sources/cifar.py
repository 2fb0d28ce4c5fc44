"""CIFAR-10 and CIFAR-100 from their binary archives (Krizhevsky 2009).

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html: a record
has one label byte, or two (coarse, fine), then the red, green and blue planes
of 32 x 32 pixels. The pickled version is not supported: unpickling runs code.
"""

import os
import pathlib
import tarfile
import zlib

import numpy as np

from resnet.data.sources.base import ArrayRecords, Source
from resnet.errors import InputError, reason_of

_SIDE = 32
_FETCH = (
  'fetch cifar-10-binary.tar.gz or cifar-100-binary.tar.gz from'
  ' https://www.cs.toronto.edu/~kriz/cifar.html'
)
# Files of each split, file of the class names, and bytes of a record's labels.
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
  """Returns 'cifar10' or 'cifar100' from the name of the archive or folder."""
  return 'cifar100' if '100' in os.path.basename(path) else 'cifar10'


def open_splits(path: str, name: str) -> dict[str, Source]:
  """Returns the splits 'train' and 'test', with the fine labels."""
  files = _read(path)
  kind = next((kind for kind, own in _SETS.items() if own[1] in files), None)
  if kind is None:
    raise InputError(f'{path} is not the binary version of CIFAR: {_FETCH}')
  if name != kind and name in _SETS:
    raise InputError(f'{path} is {kind}: type --name={kind}')
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
  """Returns the contents of the files in a folder or an archive, by name."""
  try:
    if os.path.isdir(path):
      entries = filter(pathlib.Path.is_file, pathlib.Path(path).iterdir())
      return {entry.name: entry.read_bytes() for entry in entries}
    with tarfile.open(path) as tar:
      return {
        os.path.basename(member.name): content.read()
        for member in tar
        if (content := tar.extractfile(member)) is not None
      }
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise InputError(
      f'{path} cannot be read: {reason_of(error).rstrip(":")}. Expected a whole'
      f' binary archive of CIFAR or its unpacked folder: {_FETCH}'
    ) from None


def _records(
  path: str, files: dict[str, bytes], names: list[str], label_bytes: int
) -> ArrayRecords:
  size = label_bytes + 3 * _SIDE**2
  for name in names:
    length = len(files.get(name, b''))
    if not length or length % size:
      raise InputError(
        f'{path}: {name} is missing or truncated: it has {length:,} bytes,'
        f' expected a multiple of {size:,}. Fetch the archive again.'
      )
  data = np.frombuffer(b''.join(files[name] for name in names), np.uint8)
  data = data.reshape(-1, size)
  planes = data[:, label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
  images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
  return ArrayRecords(images, data[:, label_bytes - 1])
