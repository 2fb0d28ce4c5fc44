"""ReaL: which labels belong to which image, and what counts."""

import json

import numpy as np
import pytest

from resnet.data.sources import imagenet, real_labels
from resnet.errors import InputError
from tests.data.imagenet_sets import validation_name
from tests.data.in_memory import make_source


def named(names, class_names=None):
  """Returns a source of images with these file names."""
  class_names = class_names or imagenet.class_names()
  return make_source(
    [{'image': b'', 'label': 0, 'file_name': name} for name in names],
    num_classes=len(class_names),
    class_names=class_names,
  )


def write(path, labels):
  path.write_text(json.dumps(labels))
  return str(path)


def test_labels_are_found_by_the_number_of_the_file(tmp_path):
  labels = [[i % 1000] for i in range(50_000)]
  labels[6], labels[7] = [], [1, 2, 999]
  read = real_labels.read(write(tmp_path / 'real.json', labels))
  # As `folder`, tar files and TFDS name them, in any order.
  source = named(
    [
      f'n01440764/{validation_name(8)}',
      validation_name(50_000).encode(),
      validation_name(7),
      *map(validation_name, range(100, 200)),
    ]
  )
  found = real_labels.by_file_name(source, read)
  assert found[:3] == [(1, 2, 999), (999,), ()]
  assert found[3:] == [(i - 1,) for i in range(100, 200)]


def test_another_file_is_refused(tmp_path):
  for labels in ([[1]] * 49_999, [[1]] * 49_999 + [[1000]], [1] * 50_000, {}):
    with pytest.raises(InputError, match=r'not a list of 50,000 .* 0 to 999'):
      real_labels.read(write(tmp_path / 'real.json', labels))
  with pytest.raises(InputError, match=r'none\.json cannot be read: '):
    real_labels.read(f'{tmp_path}/none.json')


def test_other_images_are_refused():
  labels = [()] * 50_000
  names = [validation_name(1), 'dog.jpg']
  with pytest.raises(InputError, match=r'record 1 of .*dog.jpg\) is not one'):
    real_labels.by_file_name(named(names), labels)
  for classes in (('tench', 'shark'), tuple(map(str, range(1000)))):
    with pytest.raises(InputError, match='needs the classes of ImageNet'):
      real_labels.by_file_name(named(names[:1], classes), labels)


def test_only_images_with_labels_are_counted():
  predictions = np.array([3, 3, 3, 3, -1, -1])
  labels = [(3,), (1, 3), (), (1, 2), (3,), ()]
  assert real_labels.score(predictions, labels) == {
    'top1': 2 / 3,
    'num_images': 3,
    'num_unlabelled': 1,
  }
  with pytest.raises(InputError, match='No image has a real label'):
    real_labels.score(predictions, [()] * 6)
