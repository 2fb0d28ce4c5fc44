"""ReaL: which labels belong to which image, and what counts."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from resnet.data import imagenet, real_labels
from resnet.data.datasets import open_source
from resnet.data.source import Source
from resnet.errors import InputError
from tests.data.imagenet_sets import validation_name, write_set
from tests.data.in_memory import Records


def make_source(names, class_names=None):
  class_names = class_names or imagenet.class_names()
  records = [{'image': b'', 'label': 0, 'file_name': name} for name in names]
  return Source(
    name='made',
    split='val',
    num_classes=len(class_names),
    channels=3,
    records=Records(records),
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
  source = make_source(
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


def test_the_published_file_is_read():
  spec = importlib.util.find_spec('timm')
  if spec is None:
    pytest.skip('timm, which has a copy, is not installed')
  folder = pathlib.Path(spec.origin).parent / 'data/_info'
  labels = real_labels.read(str(folder / 'imagenet_real_labels.json'))
  # Beyer et al. 2020, section 3: "57,553 labels for 46,837 images".
  assert sum(map(bool, labels)) == 46_837
  assert sum(map(len, labels)) == 57_553
  # A sea snake for ImageNet, and none of the classes for those who looked.
  assert labels[0] == ()


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    ([[1]] * 49_999, 'has 49,999 lists of labels; expected 50,000'),
    ({'a': [1]}, 'has no lists of labels'),
    ([[1]] * 49_999 + [[1000]], r'entry 50,000 is \[1000\]; expected a list'),
    ([[1], ['tench'], *[[1]] * 49_998], r"entry 2 is \['tench'\]"),
    ([[1]] * 9 + [[True]] + [[1]] * 49_990, r'entry 10 is \[True\]'),
    ([1] * 50_000, 'entry 1 is 1; expected a list of labels, 0 to 999'),
  ],
)
def test_another_file_is_refused(tmp_path, labels, message):
  with pytest.raises(InputError, match=message):
    real_labels.read(write(tmp_path / 'real.json', labels))


def test_a_file_that_is_no_json_is_refused(tmp_path):
  (tmp_path / 'real.json').write_text('[[1],')
  for name in ('real.json', 'none.json', ''):
    with pytest.raises(InputError, match=f'{tmp_path}/{name} cannot be read: '):
      real_labels.read(f'{tmp_path}/{name}')


def test_other_images_are_refused():
  labels = [()] * 50_000
  names = [validation_name(1), 'dog.jpg']
  with pytest.raises(InputError, match=r'record 1 of .*dog.jpg\) is not one'):
    real_labels.by_file_name(make_source(names), labels)
  with pytest.raises(InputError, match='is not one of the files'):
    real_labels.by_file_name(make_source([validation_name(50_001)]), labels)
  for classes in (('tench', 'shark'), tuple(map(str, range(1000)))):
    with pytest.raises(InputError, match='is for the classes of ImageNet'):
      real_labels.by_file_name(make_source(names[:1], classes), labels)


def test_a_prediction_counts_where_the_image_has_labels():
  predictions = np.array([3, 3, 3, 3, -1, -1])
  labels = [(3,), (1, 3), (), (1, 2), (3,), ()]
  assert real_labels.score(predictions, labels) == {
    'top1': 2 / 3,
    'num_images': 3,
    'num_unlabelled': 1,
  }
  with pytest.raises(InputError, match='No image has a real label'):
    real_labels.score(predictions, [()] * 6)


def test_the_tfds_set_brings_its_labels(tmp_path):
  rng = np.random.default_rng(0)
  examples = [
    {
      'image': rng.integers(0, 256, (8, 9, 3), np.uint8),
      'file_name': validation_name(i),
      'original_label': 100 * i,
      # 128 and more take two bytes.
      'real_label': [[], [7], [127, 128, 999], [0]][i % 4],
    }
    for i in range(10)
  ]
  write_set(str(tmp_path), 'imagenet2012_real', {'validation': examples})
  source = open_source(
    'imagenet2012_real', 'validation', data_dir=str(tmp_path)
  )
  assert source.class_names == imagenet.class_names()
  labels = real_labels.of_records(source)
  assert labels is not None and len(labels) == 10
  for index, record in enumerate(source.read(range(10))):
    number = int(record['file_name'][15:23])
    assert record['label'] == examples[number]['original_label']
    assert labels[index] == tuple(examples[number]['real_label'])
    np.testing.assert_array_equal(
      source.decode(index, record), examples[number]['image']
    )
  # Other sets have none.
  fake = open_source('fake', 'test', image_size=8)
  assert real_labels.of_records(fake) is None
