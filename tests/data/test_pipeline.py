"""From the fields of config.data to sources, transforms and statistics."""

import pytest

from configs import digits
from resnet.data.pipeline import create_data
from resnet.errors import InputError


def create(data_dir, **fields):
  config = digits.get_config().data
  config.update(data_dir=data_dir, **fields)
  return create_data(config)


def test_fields_become_transforms_and_options(data_dir):
  data = create(data_dir, crop_area=(0.1, 0.9), crop_aspect=(0.8, 1.2))
  assert (data.train.split, data.eval.split) == ('train', 'test')
  assert data.train_transform.area == (0.1, 0.9)
  assert data.train_transform.aspect == (0.8, 1.2)
  assert create(data_dir, max_bad_images=3).max_bad_images is None
  data = create(data_dir, on_bad_image='skip', max_bad_images=3)
  assert data.max_bad_images == 3


def test_given_statistics_are_kept_and_missing_ones_measured(data_dir):
  measured = create(data_dir)
  data = create(data_dir, mean=(0,))
  assert (data.mean, data.std) == ((0.0,), measured.std)
  data = create(data_dir, std=(2.5,))
  assert (data.mean, data.std) == (measured.mean, (2.5,))


@pytest.mark.parametrize(
  ('field', 'value'),
  [('mean', ()), ('std', (1.0, 2.0)), ('crop_padding', 9), ('eval_resize', 7)],
)
def test_bad_value_is_named_by_its_field(field, value, data_dir):
  with pytest.raises(InputError, match=rf'^data\.{field}='):
    create(data_dir, **{field: value})
