"""idx files: what is read, what is refused, and what TFDS finds afterwards."""

import gzip
import struct

import numpy as np
import pytest

from resnet.data import datasets, idx
from resnet.errors import InputError
from resnet.tools import prepare


def idx_bytes(array, kind=8):
  header = bytes([0, 0, kind, array.ndim])
  return header + struct.pack(f'>{array.ndim}i', *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
  """Thirty training and ten test images of 6 x 5 pixels."""
  rng = np.random.default_rng(0)
  for prefix, count in (('train', 30), ('t10k', 10)):
    images = rng.integers(0, 256, (count, 6, 5), np.uint8)
    labels = (np.arange(count) % 3).astype(np.uint8)
    for name, array in (('images-idx3', images), ('labels-idx1', labels)):
      with gzip.open(tmp_path / f'{prefix}-{name}-ubyte.gz', 'wb') as file:
        file.write(idx_bytes(array))
  return tmp_path


def test_prepared_images_are_those_of_the_files(folder, tmp_path):
  splits = idx.read_splits(str(folder))
  data_dir = str(tmp_path / 'sets')
  words = f'--from=idx --source={folder} --out={data_dir} --name=tiny_grey'
  prepare.main(prepare.parser().parse_args(words.split()))
  for split, (images, labels) in splits.items():
    source = datasets.open_source('tiny_grey', split, data_dir=data_dir)
    assert (len(source), source.num_classes, source.channels) == (
      len(images),
      3,
      1,
    )
    records = source.read(range(len(source)))
    found = sorted(
      (source.decode(i, record).tobytes(), int(record['label']))
      for i, record in enumerate(records)
    )
    expected = sorted(
      (image.tobytes(), int(label))
      for image, label in zip(images, labels, strict=True)
    )
    assert found == expected


def test_files_need_not_be_zipped(folder):
  path = folder / 't10k-images-idx3-ubyte'
  with gzip.open(f'{path}.gz') as file:
    path.write_bytes(file.read())
  zipped = idx.read_splits(str(folder))
  (folder / f'{path.name}.gz').unlink()
  np.testing.assert_array_equal(
    idx.read_splits(str(folder))['test'][0], zipped['test'][0]
  )


IMAGES = np.zeros((4, 6, 5), np.uint8)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (idx_bytes(IMAGES)[:-1], '119 numbers for the shape \\[4, 6, 5\\]'),
    (idx_bytes(IMAGES) + b'0', '121 numbers'),
    (idx_bytes(IMAGES, kind=9), 'begins with 00 00 09 03'),
    (idx_bytes(IMAGES[0]), 'begins with 00 00 08 02'),
    (idx_bytes(IMAGES)[:10], 'no idx file'),
    (b'', 'no idx file'),
    (idx_bytes(IMAGES), '4 images and 10 labels for test'),
    (idx_bytes(IMAGES[:0]), '0 images and 10 labels'),
  ],
)
def test_damaged_files_are_refused(folder, content, message):
  (folder / 't10k-images-idx3-ubyte.gz').unlink()
  (folder / 't10k-images-idx3-ubyte').write_bytes(content)
  with pytest.raises(InputError, match=message):
    idx.read_splits(str(folder))


def test_missing_and_broken_zips_are_named(folder):
  path = folder / 'train-labels-idx1-ubyte.gz'
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(InputError, match=r'train-labels-idx1-ubyte\.gz cannot'):
    idx.read_splits(str(folder))
  path.unlink()
  with pytest.raises(InputError, match=r'neither train-labels-idx1-ubyte\.gz'):
    idx.read_splits(str(folder))


def test_a_flipped_byte_is_named(folder):
  path = folder / 'train-images-idx3-ubyte.gz'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(content)
  with pytest.raises(InputError, match=r'train-images-idx3-ubyte\.gz cannot'):
    idx.read_splits(str(folder))


def test_a_label_without_a_name_is_refused(folder):
  labels = np.full(30, 11, np.uint8)
  (folder / 'train-labels-idx1-ubyte.gz').unlink()
  (folder / 'train-labels-idx1-ubyte').write_bytes(idx_bytes(labels))
  with pytest.raises(InputError, match=r'10 classes, but .* a label 11'):
    idx.open_idx(str(folder), 'fashion_mnist')


def test_fashion_mnist_has_names(folder):
  for source in idx.open_idx(str(folder), 'fashion_mnist').values():
    names = source.class_names
    assert (len(names), names[0], names[9]) == (10, 'T-shirt/top', 'Ankle boot')
    assert (source.channels, source.image_shape) == (1, (6, 5, 1))
