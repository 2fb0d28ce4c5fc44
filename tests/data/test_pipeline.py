"""From the fields of config.data to sources, transforms and statistics."""

import math

import pytest

from configs import digits
from resnet.data.loader import LoaderOptions
from resnet.data.normalization import channel_statistics
from resnet.data.pipeline import create_data
from resnet.data.transforms import EvalTransform, TrainTransform
from resnet.errors import InputError


def create(data_dir, **fields):
  fields = {**digits.get_config().data, 'data_dir': data_dir, **fields}
  return create_data(**fields)


def test_fields_become_sources_transforms_and_options(data_dir):
  data = create(
    data_dir,
    eval_resize=9,
    crop='pad',
    crop_padding=1,
    crop_area=(0.1, 0.9),
    crop_aspect=(0.8, 1.2),
    num_workers=4,
    num_threads=5,
    prefetch_batches=6,
    max_worker_restarts=7,
  )
  assert (data.train.split, len(data.train)) == ('train', 1437)
  assert (data.eval.split, len(data.eval)) == ('test', 360)
  area, aspect = (0.1, 0.9), (0.8, 1.2)
  assert data.train_transform == TrainTransform(
    size=8, crop='pad', area=area, aspect=aspect, padding=1, flip=False
  )
  assert data.eval_transform == EvalTransform(size=8, resize_size=9)
  assert (data.mean, data.std) == channel_statistics(data.train, 8)
  assert data.loader == LoaderOptions(
    num_workers=4, num_threads=5, prefetch_batches=6, max_worker_restarts=7
  )


def test_broken_images_may_be_left_out_up_to_a_number(data_dir):
  assert create(data_dir, max_bad_images=3).max_bad_images is None
  data = create(data_dir, on_bad_image='skip', max_bad_images=3)
  assert data.max_bad_images == 3
  with pytest.raises(InputError, match="'ignore' is none of error, skip"):
    create(data_dir, on_bad_image='ignore')


def test_given_statistics_stand_and_the_other_is_measured(data_dir):
  data = create(data_dir, mean=(0,))
  assert (data.mean, data.std) == ((0.0,), create(data_dir).std)
  data = create(data_dir, std=('2.5',))
  assert (data.mean, data.std) == (create(data_dir).mean, (2.5,))


# As a command line can bring them; 1e999 is infinite.
@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('image_size', 0),
    ('eval_resize', 7),
    ('crop', 'centre'),
    ('crop_area', (0.5,)),
    ('crop_area', (0.5, 0.4)),
    ('crop_aspect', (1.0, 'wide')),
    ('crop_aspect', (0.5, 1.0, 2.0)),
    ('crop_aspect', (1.0, math.inf)),
    ('crop_padding', -1),
    ('mean', (1.0, 2.0, 3.0)),
    ('mean', ()),
    ('mean', (math.inf,)),
    ('std', (0.0,)),
    ('std', ('a',)),
    ('num_workers', -1),
    ('num_threads', 0),
    ('prefetch_batches', 0),
    ('on_bad_image', 'ignore'),
    ('on_bad_image', ''),
    ('max_bad_images', -1),
    ('max_worker_restarts', -1),
  ],
)
def test_bad_value_is_named_by_its_field(field, value, data_dir):
  with pytest.raises(InputError, match=rf'^data\.{field}='):
    create(data_dir, **{field: value})


def test_wrong_number_of_values_says_what_to_type(data_dir):
  with pytest.raises(InputError) as error:
    create(data_dir, mean=(1.0, 2.0, 3.0))
  assert "--config.data.mean='(1.0,)'" in str(error.value)
