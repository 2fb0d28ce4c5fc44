"""The embedded data set: which images, which split, which bytes."""

import numpy as np
from sklearn import datasets

from resnet.data.host.decode import decode_record
from resnet.data.sources.registry import open_source
from tests.programs import start


def test_splits_hold_every_image_once_and_every_fifth_in_test(data_dir):
  digits = datasets.load_digits()
  order = np.argsort(digits.target, kind='stable')
  pixels = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
  labels = digits.target[order].tolist()
  originals = list(zip(labels, map(np.ndarray.tobytes, pixels), strict=True))
  splits = {'test': originals[::5], 'train': originals}
  del splits['train'][::5]
  for split, expected in splits.items():
    source = open_source('digits', split, data_dir=data_dir)
    assert (source.channels, source.num_classes) == (1, 10)
    found = []
    for index, record in enumerate(source.read(range(len(source)))):
      assert record['image'].startswith(b'\x89PNG')
      image = decode_record(source, index, record)
      assert image.shape == (8, 8, 1)
      found.append((record['label'], image.tobytes()))
    assert len(found) == {'test': 360, 'train': 1437}[split]
    assert sorted(found) == sorted(expected)
    assert len(set(found)) == len(found)


# Prepares the set as soon as there is the file that is named.
OPEN = """
import pathlib, sys, time
from resnet.data.host.decode import decode_record
from resnet.data.sources import digits, registry
import sklearn.datasets
print('ready', flush=True)
while not pathlib.Path(sys.argv[1]).exists():
  time.sleep(0.001)
source = registry.open_source('digits', 'test')
(record,) = source.read([0])
print(decode_record(source, 0, record).shape, len(source))
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
