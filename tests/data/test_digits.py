"""The embedded data set: which images, which split, which bytes."""

from collections import Counter
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from resnet.data.datasets import open_source
from resnet.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


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
  return {
    split: [
      (record['label'], source.decode(index, record).tobytes())
      for index, record in enumerate(source.read(range(len(source))))
    ]
    for split in ('train', 'test')
    for source in [open_source('digits', split, data_dir=data_dir)]
  }


def test_splits_are_disjoint_and_hold_every_image_once(originals, splits):
  train, test = (set(splits[name]) for name in ('train', 'test'))
  assert len(splits['train']) == len(train) == 1437
  assert len(splits['test']) == len(test) == 360
  assert not train & test
  assert len(originals) == 1797 and train | test == set(originals)


def test_test_split_is_every_fifth_image_sorted_by_label(originals, splits):
  by_label = sorted(originals, key=lambda example: example[0])  # Is stable.
  assert set(splits['test']) == set(by_label[::5])


def test_a_fifth_of_each_label_is_in_the_test_split(splits):
  whole = Counter(label for label, _ in splits['train'] + splits['test'])
  test = Counter(label for label, _ in splits['test'])
  assert sorted(test) == list(range(10))
  assert all(abs(test[label] - whole[label] / 5) <= 1 for label in test)


def test_images_are_stored_as_grey_png_of_8_by_8(data_dir):
  source = open_source('digits', 'test', data_dir=data_dir)
  assert (source.channels, source.num_classes) == (1, 10)
  for index, record in enumerate(source.read(range(len(source)))):
    assert record['image'].startswith(b'\x89PNG')
    assert source.decode(index, record).shape == (8, 8, 1)


def test_second_opening_writes_nothing(data_dir):
  def open_and_list():
    open_source('digits', 'train', data_dir=data_dir)
    files = pathlib.Path(data_dir, 'digits').rglob('*')
    return {file: (file.stat().st_ino, file.stat().st_mtime) for file in files}

  first = open_and_list()
  assert len(first) == 5 and open_and_list() == first


def open_in_process(data_dir):
  """Starts a Python that waits for a line, then opens `digits`."""
  code = (
    'import sys\n'
    'from resnet.data import datasets, digits\n'
    'import sklearn.datasets\n'
    'print("ready", flush=True)\n'
    'input()\n'
    'source = datasets.open_source("digits", "test")\n'
    'print(source.decode(0, *source.read([0])).shape, len(source))\n'
    'print("tensorflow" in sys.modules)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={**os.environ, 'TFDS_DATA_DIR': str(data_dir)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


def test_preparing_and_reading_is_quiet_and_needs_no_tensorflow(tmp_path):
  process = open_in_process(tmp_path)
  assert process.communicate('\n') == ('(8, 8, 1) 360\nFalse\n', '')
  assert (tmp_path / 'digits').is_dir()


def test_two_processes_may_prepare_at_the_same_time(tmp_path):
  processes = [open_in_process(tmp_path) for _ in range(2)]
  for process in processes:
    process.stdin.write('\n')
    process.stdin.flush()
  results = [process.communicate() for process in processes]
  assert results == [('(8, 8, 1) 360\nFalse\n', '')] * 2


def test_folder_that_cannot_be_written_is_named(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(InputError, match=r'file/digits.*: Not a directory.*DIR'):
    open_source('digits', 'train', data_dir=str(file))
