"""Sets to evaluate on: their labels must mean what those of training mean."""

import dataclasses

import numpy as np
import pytest

from resnet.data import imagenet
from resnet.data.datasets import open_source
from resnet.data.same_classes import open_same_classes
from resnet.errors import InputError
from tests.data.imagenet_sets import write_set


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Sets of two images each."""
  folder = str(tmp_path_factory.mktemp('sets'))
  examples = [
    {'image': np.full((4, 4, 3), n, np.uint8), 'label': n, 'file_name': f'{n}'}
    for n in range(2)
  ]
  splits = {'train': examples, 'validation': examples}
  write_set(folder, 'imagenet2012', splits)
  write_set(folder, 'imagenet_v2/topimages', {'test': examples})
  return folder


@pytest.fixture
def train(folder):
  return open_source('imagenet2012', 'train', data_dir=folder)


def test_version_2_has_the_classes_of_imagenet_and_one_split(folder, train):
  source = open_same_classes(
    train, 'imagenet_v2/topimages', None, data_dir=folder
  )
  assert (source.split, len(source)) == ('test', 2)
  assert source.class_names == train.class_names == imagenet.class_names()
  # Label 0 is the first of the ids in order.
  assert list(imagenet.class_names()) == sorted(imagenet.class_names())


@pytest.mark.parametrize(
  ('name', 'split', 'message'),
  [
    ('imagenet_v2/topimage', None, 'imagenet_v2/topimage'),
    ('imagenet_v2/topimages', 'validation', 'There are: test'),
    ('imagenet_v3', None, 'Did you mean: .*imagenet_v2'),
    (
      'imagenet2012',
      None,
      'has the splits train, validation: name one, --split=val',
    ),
    ('digits', 'test', 'digits/test has 10 classes, and .* has 1,000'),
    ('fake', None, 'has the splits train, test: name one, --split=test'),
  ],
)
def test_another_set_is_refused(folder, train, name, split, message):
  with pytest.raises(InputError, match=message):
    open_same_classes(train, name, split, data_dir=folder)


def test_other_names_and_channels_are_refused(folder, train):
  names = ('n00000000', *train.class_names[1:])
  other = dataclasses.replace(train, class_names=names)
  with pytest.raises(
    InputError, match=r"class 'n01440764' where .*'n00000000'"
  ):
    open_same_classes(other, 'imagenet_v2/topimages', None, data_dir=folder)
  # Where the training data give no names, the number must do.
  nameless = dataclasses.replace(train, class_names=None)
  open_same_classes(nameless, 'imagenet_v2/topimages', None, data_dir=folder)
  grey = dataclasses.replace(train, channels=1)
  with pytest.raises(
    InputError, match=r'has 3 channels, and .* has 1: expected'
  ):
    open_same_classes(grey, 'imagenet_v2/topimages', None, data_dir=folder)
