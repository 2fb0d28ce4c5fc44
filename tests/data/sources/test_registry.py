"""Sources by name: a user's own set, known sets, and every refusal."""

import io
import re
import shlex
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from resnet.data.host.decode import decode_record
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from tests.data.in_memory import encode, smooth_image


def user_file(index):
  """Returns name and bytes; every second one is a JPEG."""
  suffix = ('png', 'jpeg')[index % 2]
  return f'{index}.{suffix}', encode(smooth_image(9 + index, 14), suffix)


class UserShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  VERSION = tfds.core.Version('1.2.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(),
      'label': tfds.features.ClassLabel(names=['circle', 'square', 'star']),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    examples = self._generate_examples
    return {'train': examples(range(7)), 'val': examples(range(7, 10))}

  def _generate_examples(self, indices):
    for index in indices:
      name, data = user_file(index)
      image = io.BytesIO(data)
      yield index, {'image': image, 'label': index % 3, 'file_name': name}


class KnownShapes(UserShapes):
  """A set whose code TFDS knows, and which needs no TensorFlow."""


@pytest.fixture(scope='module')
def user_dir(tmp_path_factory):
  """A folder as `download_and_prepare` leaves it."""
  folder = str(tmp_path_factory.mktemp('user'))
  UserShapes(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_user_set_is_read_without_its_code(user_dir):
  known = tfds.list_builders(with_community_datasets=False)
  assert 'cifar10' in known and 'user_shapes' not in known
  found = {}
  for name, length in (('user_shapes', 7), ('user_shapes:1.2.0', 3)):
    split = 'train' if length == 7 else 'val'
    source = open_source(name, split, data_dir=user_dir)
    assert (source.channels, source.num_classes, len(source)) == (3, 3, length)
    for index, record in enumerate(source.read(range(length))):
      file_name = record['file_name'].decode()
      found[file_name] = record['image']
      number = int(file_name.split('.')[0])
      assert record['label'] == number % 3
      image = decode_record(source, index, record)
      original = smooth_image(9 + number, 14)
      assert image.shape == original.shape
      if file_name.endswith('png'):
        np.testing.assert_array_equal(image, original)
  assert found == dict(map(user_file, range(10)))
  # Records come in the order of the keys, also of a part.
  whole = open_source('user_shapes', 'train', data_dir=user_dir)
  records = whole.read(range(7))
  assert whole.read([4, 0, 6, 4]) == [records[key] for key in (4, 0, 6, 4)]
  part = open_source('user_shapes', 'train[2:5]', data_dir=user_dir)
  assert part.read(range(len(part))) == records[2:5]


def test_a_damaged_file_of_records_is_named(user_dir, tmp_path):
  shutil.copytree(user_dir, tmp_path / 'data')
  source = open_source('user_shapes', 'train', data_dir=str(tmp_path / 'data'))
  (path,) = (tmp_path / 'data').rglob('user_shapes-train.array_record*')
  data = path.read_bytes()
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 1
  for damaged in (bytes(flipped), data[: len(data) // 2], None):
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(InputError, match=f'cannot be read from {path}: '):
      source.read(range(len(source)))


def test_unknown_name_gives_the_nearest_ones(user_dir, data_dir):
  for name, message in (
    ('imagnet2012', 'Did you mean: imagenet2012'),
    ('CIFAR10', r'Did you mean: cifar10\b'),
    ('', "no data set ''"),
  ):
    with pytest.raises(InputError, match=message):
      open_source(name, 'train', data_dir=user_dir)
  # A set that is both known and prepared is listed once.
  open_source('digits', 'train', data_dir=data_dir)
  with pytest.raises(InputError, match=r'Did you mean: digits\?'):
    open_source('digit', 'train', data_dir=data_dir)


def test_the_command_in_the_message_prepares_the_set(tmp_path):
  with pytest.raises(InputError, match='tensorflow-cpu'):
    open_source('cifar10', 'train', data_dir=str(tmp_path))
  with pytest.raises(InputError, match='is not prepared') as error:
    open_source('known_shapes', 'train', data_dir=str(tmp_path))
  command = re.search(r'python -c "[^"]*"', str(error.value))[0]
  code = shlex.split(command)[-1]
  assert "'array_record'" in code
  exec(code, {})
  assert len(open_source('known_shapes', 'train', data_dir=str(tmp_path))) == 7


def test_a_split_that_is_unknown_or_empty_is_refused(user_dir):
  for split in ('validation', 'train[:x]', 'train[:99]', ''):
    with pytest.raises(InputError, match='There are: train, val') as error:
      open_source('user_shapes', split, data_dir=user_dir)
    assert repr(split) in str(error.value)
    with pytest.raises(InputError, match='There are: train, test'):
      open_source('fake', split)
  for split in ('train[3:3]', 'train[5:2]', 'train[:0%]'):
    with pytest.raises(InputError, match='no images'):
      open_source('user_shapes', split, data_dir=user_dir)
