"""The embedded data set: which images, which split, which bytes."""

import pathlib

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from resnet.data.datasets import open_source
from resnet.errors import InputError
from tests.programs import start


@pytest.fixture(scope='module')
def originals():
  """Label and pixels of scikit-learn's images, in its order."""
  digits = sklearn_datasets.load_digits()
  scaled = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
  pixels = scaled[digits.images.astype(int)]
  return [
    (int(label), image.tobytes())
    for label, image in zip(digits.target, pixels, strict=True)
  ]


@pytest.fixture(scope='module')
def splits(data_dir):
  """Label and pixels of the prepared images, in the order of the files."""
  found = {'train': [], 'test': []}
  for split, examples in found.items():
    source = open_source('digits', split, data_dir=data_dir)
    assert (source.channels, source.num_classes) == (1, 10)
    for index, record in enumerate(source.read(range(len(source)))):
      assert record['image'].startswith(b'\x89PNG')
      image = source.decode(index, record)
      assert image.shape == (8, 8, 1)
      examples.append((record['label'], image.tobytes()))
  return found


def test_splits_are_disjoint_and_hold_every_image_once(originals, splits):
  train, test = (set(splits[name]) for name in ('train', 'test'))
  assert len(splits['train']) == len(train) == 1437
  assert len(splits['test']) == len(test) == 360
  assert not train & test
  assert len(originals) == 1797 and train | test == set(originals)


def test_test_split_is_every_fifth_image_sorted_by_label(originals, splits):
  by_label = sorted(originals, key=lambda example: example[0])  # Is stable.
  assert set(splits['test']) == set(by_label[::5])


def test_second_opening_writes_nothing(data_dir):
  def open_and_list():
    open_source('digits', 'train', data_dir=data_dir)
    files = pathlib.Path(data_dir, 'digits').rglob('*')
    return {file: (file.stat().st_ino, file.stat().st_mtime) for file in files}

  first = open_and_list()
  assert len(first) == 5 and open_and_list() == first


# Prepares the set as soon as there is the file that is named.
OPEN = """
import pathlib, sys, time
from resnet.data import datasets, digits
import sklearn.datasets
print('ready', flush=True)
while not pathlib.Path(sys.argv[1]).exists():
  time.sleep(0.001)
source = datasets.open_source('digits', 'test')
print(source.decode(0, *source.read([0])).shape, len(source))
print('tensorflow' in sys.modules)
"""


def test_two_processes_prepare_it_at_once_quietly_without_tensorflow(tmp_path):
  begin, data_dir = tmp_path / 'begin', tmp_path / 'data'
  processes = [
    start('-c', OPEN, begin, TFDS_DATA_DIR=str(data_dir)) for _ in range(2)
  ]
  for process in processes:
    assert process.stdout.readline() == 'ready\n'
  begin.touch()
  results = [process.communicate() for process in processes]
  assert results == [('(8, 8, 1) 360\nFalse\n', '')] * 2
  assert (data_dir / 'digits').is_dir()


def test_folder_that_cannot_be_written_is_named(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(InputError, match=r'file/digits.*: Not a directory.*DIR'):
    open_source('digits', 'train', data_dir=str(file))
