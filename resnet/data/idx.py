"""TFDS sets from idx files: MNIST, Fashion-MNIST and their kin, no network.

The format is that of http://yann.lecun.com/exdb/mnist: two zero bytes, the type
(8: uint8), the number of dims, each dim as a big-endian int32, the numbers.
"""

from collections.abc import Iterator
import gzip
import io
import math
import os
from typing import Any
import zlib

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from resnet.errors import InputError

_SPLITS = {'train': 'train', 'test': 't10k'}
_CLASS_NAMES = {
  # Xiao et al. 2017, Table 2.
  'fashion_mnist': (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
  ),
}

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def read_idx(path: str, num_dims: int) -> np.ndarray:
  """Returns the uint8 array of a file, gzipped where its name ends in .gz.

  Raises:
    InputError: it cannot be read, or is no idx file of so many dims.
  """
  try:
    with gzip.open(path) if path.endswith('.gz') else open(path, 'rb') as file:
      header = file.read(4 + 4 * num_dims)
      numbers = file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f'{path} cannot be read: {error}') from None
  whole = header if len(header) == 4 + 4 * num_dims else b''
  shape = tuple(np.frombuffer(whole[4:], '>i4').tolist())
  if whole[:4] != bytes([0, 0, 8, num_dims]) or len(numbers) != math.prod(
    shape
  ):
    raise InputError(
      f'{path} is no idx file of uint8 in {num_dims} dims: it begins with'
      f' {header[:4].hex(" ") or "nothing"} and has {len(numbers):,} numbers'
      f' for the shape {list(shape)}.'
    )
  return np.frombuffer(numbers, np.uint8).reshape(shape)


def read_splits(folder: str) -> Splits:
  """Returns images [N, H, W] and labels [N] of 'train' and 'test'.

  Args:
    folder: with {train,t10k}-{images-idx3,labels-idx1}-ubyte, or these .gz.

  Raises:
    InputError: a file is missing or damaged, or counts differ.
  """
  splits = {}
  for split, prefix in _SPLITS.items():
    images = read_idx(_find(folder, f'{prefix}-images-idx3-ubyte'), 3)
    labels = read_idx(_find(folder, f'{prefix}-labels-idx1-ubyte'), 1)
    if len(images) != len(labels) or not len(images):
      raise InputError(
        f'{folder} has {len(images)} images and {len(labels)} labels for'
        f' {split}.'
      )
    splits[split] = images, labels
  return splits


def _find(folder: str, name: str) -> str:
  for path in (os.path.join(folder, f'{name}{end}') for end in ('.gz', '')):
    if os.path.exists(path):
      return path
  raise InputError(f'{folder} has neither {name}.gz nor {name}.')


def create_builder(
  name: str, splits: Splits, data_dir: str | None
) -> tfds.core.GeneratorBasedBuilder:
  """Returns a builder of grey images, stored as PNG.

  Args:
    name: under which the set is to be found.
    splits: images and labels by split.
    data_dir: where TFDS keeps prepared sets; None: its default.

  Raises:
    InputError: a set of this name has fewer classes.
  """
  images, _ = splits['train']
  names = _CLASS_NAMES.get(name)
  num_classes = 1 + max(int(labels.max()) for _, labels in splits.values())
  if names and num_classes > len(names):
    raise InputError(
      f'{name} has {len(names)} classes, but these files have a label'
      f' {num_classes - 1}: give the set another name.'
    )
  label = (
    tfds.features.ClassLabel(names=list(names))
    if names
    else tfds.features.ClassLabel(num_classes=num_classes)
  )

  def info(self: Any) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{name}, from idx files.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(*images.shape[1:], 1), encoding_format='png'
          ),
          'label': label,
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def split_generators(self: Any, dl_manager: Any) -> Any:
    del self, dl_manager  # The arrays are here.
    return {split: _examples(*arrays) for split, arrays in splits.items()}

  attributes = {
    '__module__': __name__,
    'name': name,
    'VERSION': tfds.core.Version('1.0.0'),
    '_info': info,
    '_split_generators': split_generators,
    '_generate_examples': _examples,
  }
  # TFDS may know a set of this name already.
  with registered.skip_registration():
    builder_cls = type('Idx', (tfds.core.GeneratorBasedBuilder,), attributes)
  return builder_cls(data_dir=data_dir, file_format='array_record')


def _examples(
  images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
  for i, (image, label) in enumerate(zip(images, labels, strict=True)):
    png = cv2.imencode('.png', image)[1].tobytes()
    yield i, {'image': io.BytesIO(png), 'label': int(label)}
