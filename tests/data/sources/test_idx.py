"""idx files: what is read, what is refused, and what TFDS finds afterwards."""

import gzip
import struct

import numpy as np
import pytest

from resnet.data.sources import idx, registry
from resnet.errors import InputError
from tests.data.in_memory import contents


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


def test_prepared_images_are_those_of_the_files(folder, tmp_path, tool):
  data_dir = tmp_path / 'sets'
  words = f'--from=idx --source={folder} --out={data_dir} --name=tiny_grey'
  result = tool('prepare', *words.split())
  assert result.returncode == 0, result.stderr
  # Files need not be zipped.
  for path in folder.glob('t10k-*.gz'):
    path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
  for split, files in idx.open_splits(str(folder), 'tiny_grey').items():
    source = registry.open_source('tiny_grey', split, data_dir=str(data_dir))
    assert (source.num_classes, source.channels) == (3, 1)
    assert contents(source) == contents(files)


IMAGES = np.zeros((4, 6, 5), np.uint8)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (idx_bytes(IMAGES)[:-1], '119 numbers for the shape \\[4, 6, 5\\]'),
    (idx_bytes(IMAGES, kind=9), 'begins with 00 00 09 03'),
    (idx_bytes(IMAGES), '4 images and 10 labels for test'),
  ],
)
def test_damaged_files_are_refused(folder, content, message):
  (folder / 't10k-images-idx3-ubyte.gz').unlink()
  (folder / 't10k-images-idx3-ubyte').write_bytes(content)
  with pytest.raises(InputError, match=message):
    idx.open_splits(str(folder), 'tiny_grey')


def test_missing_and_broken_zips_are_named(folder):
  path = folder / 'train-labels-idx1-ubyte.gz'
  content = path.read_bytes()
  flipped = bytearray(content)
  flipped[-5] ^= 0xFF  # In the checksum.
  for broken in (content[:20], bytes(flipped)):
    path.write_bytes(broken)
    with pytest.raises(InputError, match=r'train-labels-idx1-ubyte\.gz cannot'):
      idx.open_splits(str(folder), 'tiny_grey')
  path.unlink()
  message = (
    r'train-labels-idx1-ubyte cannot be read: No such file or directory\.$'
  )
  with pytest.raises(InputError, match=message):
    idx.open_splits(str(folder), 'tiny_grey')
