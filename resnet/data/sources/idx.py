"""idx files: MNIST, Fashion-MNIST and similar sets.

The format is described at http://yann.lecun.com/exdb/mnist: two zero bytes, the
type (8: uint8), the number of dims, each dim as a big-endian int32, the data.
"""

import gzip
import math
import os
import zlib

import numpy as np

from resnet.data.sources.base import ArrayRecords, Source
from resnet.errors import InputError
from resnet.files import reading

_SPLITS = {'train': 'train', 'test': 't10k'}
# Xiao et al. 2017, Table 2.
_FASHION = 'T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag'
_CLASS_NAMES = {'fashion_mnist': (*_FASHION.split(','), 'Ankle boot')}


def read_idx(path: str, num_dims: int) -> np.ndarray:
  """Returns the uint8 array of a file, or of PATH.gz if that exists."""
  zipped = f'{path}.gz'
  path = zipped if os.path.exists(zipped) else path
  open_file = gzip.open if path == zipped else open
  failure = f'{path} cannot be read'
  with reading(failure, EOFError, zlib.error), open_file(path, 'rb') as file:
    header = file.read(4 + 4 * num_dims)
    numbers = file.read()
  shape = np.frombuffer(header[4 : len(header) // 4 * 4], '>i4').tolist()
  if (
    header[:4] != bytes([0, 0, 8, num_dims])
    or len(shape) != num_dims
    or len(numbers) != math.prod(shape)
  ):
    raise InputError(
      f'{path} is not an idx file of uint8 in {num_dims} dims: it begins with'
      f' {header[:4].hex(" ") or "nothing"} and has {len(numbers):,} numbers'
      f' for the shape {shape}.'
    )
  return np.frombuffer(numbers, np.uint8).reshape(shape)


def open_splits(folder: str, name: str) -> dict[str, Source]:
  """Returns the splits 'train' and 'test' of a folder of idx files.

  It holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, or these with .gz.
  """
  splits, names = {}, _CLASS_NAMES.get(name)
  for split, prefix in _SPLITS.items():
    path = os.path.join(folder, prefix)
    images = read_idx(f'{path}-images-idx3-ubyte', 3)
    labels = read_idx(f'{path}-labels-idx1-ubyte', 1)
    if len(images) != len(labels) or not len(images):
      raise InputError(
        f'{folder} has {len(images)} images and {len(labels)} labels for'
        f' {split}; expected equal numbers, and not zero.'
      )
    splits[split] = ArrayRecords(images[..., None], labels)
  num_classes = 1 + max(int(own.labels.max()) for own in splits.values())
  if names and num_classes > len(names):
    raise InputError(
      f'{name} has {len(names)} classes, but these files have the label'
      f' {num_classes - 1}: choose another --name.'
    )
  return {
    split: Source(
      name=name,
      split=split,
      num_classes=len(names) if names else num_classes,
      channels=1,
      records=records,
      class_names=names,
      image_shape=records.images.shape[1:],
    )
    for split, records in splits.items()
  }
