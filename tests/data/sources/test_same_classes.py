"""Sets to evaluate on: their labels must mean what those of training mean."""

import dataclasses

import numpy as np
import pytest

from resnet.data.sources import imagenet
from resnet.data.sources.registry import open_same_classes
from resnet.errors import InputError
from tests.data.imagenet_sets import write_set
from tests.data.in_memory import make_source

V2 = 'imagenet_v2/topimages'
TRAIN = make_source(
  [], num_classes=1000, channels=3, class_names=imagenet.class_names()
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A set of one image, whose classes are those of ImageNet."""
  folder = str(tmp_path_factory.mktemp('sets'))
  image = np.zeros((4, 4, 3), np.uint8)
  example = {'image': image, 'label': 0, 'file_name': '0'}
  write_set(folder, V2, {'test': [example]})
  return folder


def test_the_only_split_of_a_set_of_these_classes_is_opened(folder):
  source = open_same_classes(TRAIN, V2, None, data_dir=folder)
  assert (source.split, len(source)) == ('test', 1)
  assert source.class_names == TRAIN.class_names
  # Where the training data give no names, the number must do.
  nameless = dataclasses.replace(TRAIN, class_names=None)
  open_same_classes(nameless, V2, None, data_dir=folder)


@pytest.mark.parametrize(
  ('changes', 'name', 'split', 'message'),
  [
    ({}, 'fake', None, 'not have exactly one split: .*--split=SPLIT'),
    ({}, 'digits', 'test', 'digits/test has num classes 10, but .* has 1000'),
    (
      {'class_names': ('n0', *imagenet.class_names()[1:])},
      V2,
      None,
      r"class names 'n01440764', but .* has 'n0'",
    ),
    ({'channels': 1}, V2, None, r'has channels 3, but .* has 1: expected'),
  ],
)
def test_another_set_is_refused(folder, changes, name, split, message):
  train = dataclasses.replace(TRAIN, **changes)
  with pytest.raises(InputError, match=message):
    open_same_classes(train, name, split, data_dir=folder)
