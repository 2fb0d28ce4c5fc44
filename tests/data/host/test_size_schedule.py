"""The size of training images as a function of the step."""

import numpy as np
import pytest

from resnet.data.host.size_schedule import Sizes
from resnet.errors import InputError
from tests import runs

SCHEDULE = ((0.0, 8), (0.75, 12), (1.5, 16))


def resolve(schedule=SCHEDULE, **fields):
  return runs.resolve(data__size_schedule=schedule, **fields)


def test_a_size_begins_with_the_first_batch_of_its_epoch():
  run = resolve()
  assert run.length.steps_per_epoch == 8
  assert run.sizes == Sizes(((0, 8), (6, 12), (12, 16)))
  found = [run.sizes.at(step) for step in (0, 5, 6, 11, 12, 15, 16)]
  assert found == [8, 8, 12, 12, 16, 16, 16]
  for schedule in ((), ((0, 16),)):
    assert resolve(schedule).sizes == Sizes(((0, 16),))


@pytest.mark.parametrize('crop', ['random_resized', 'pad'])
def test_batches_on_the_host_have_the_size_of_their_step(crop):
  run = resolve(data__crop=crop)
  reader = run.train_reader
  for step, size in ((5, 8), (6, 12), (12, 16)):
    batch = reader(step)
    assert batch['image'].shape == (64, size, size, 3)
    indices, all_draws = reader.plan(step)
    transform = reader.transform.with_size(size)
    records = reader.source.read(indices)
    for row in (0, 63):
      draws, index = all_draws[row], indices[row]
      image, box = reader.decode(draws, index, records[row])
      np.testing.assert_array_equal(
        batch['image'][row], transform(image, box, draws)
      )
      assert batch['label'][row] == records[row]['label']
  # Evaluation has a size of its own, and tools see the last one throughout.
  assert run.eval_reader(0)['image'].shape[1:] == (16, 16, 3)
  run = run.at_last_size()
  assert run.image_shape == run.train_image_shape == (16, 16, 3)
  assert run.train_reader(0)['image'].shape == (64, 16, 16, 3)
  run = resolve(data__eval_size=20, data__eval_resize=20)
  assert run.eval_image_shape == (20, 20, 3)
  assert run.at(0).eval_reader(0)['image'].shape[1:] == (20, 20, 3)


def test_device_batches_have_the_stored_size_and_the_step_resizes():
  run = resolve(data__augment_on='device', data__crop='random_resized')
  for step, size in ((5, 8), (6, 12), (12, 16)):
    assert run.train_reader(step)['image'].shape == (64, 16, 16, 3)
    now = run.at(step)
    assert now.image_shape == (size, size, 3)
    assert now.task.device_crop.size == size
    assert now.train_image_shape == run.train_image_shape == (16, 16, 3)


@pytest.mark.parametrize(
  ('schedule', 'message'),
  [
    ((8,), r'--config\.data\.size_schedule="\(\(0.0, 8\), \(10.0, 16\)\)"'),
    (((0, 8), (float('nan'), 16)), 'not made of pairs'),
    (((0.5, 8), (1, 16)), 'from epoch 0'),
    (((0, 8), (1.5, 12), (1, 16)), 'both rising'),
    (((0, 8), (1, 12)), r'to the 16 pixels of data\.image_size'),
    (((0, 1), (1, 16)), r'crop_padding=2 is not in 0 \.\. 1'),
  ],
)
def test_bad_schedules_are_named(schedule, message):
  with pytest.raises(InputError, match=message):
    resolve(schedule)


def test_a_crop_on_the_device_that_does_not_resize_is_refused():
  with pytest.raises(InputError, match="'random_resized': 'pad' does not"):
    resolve(data__augment_on='device', data__crop='pad')
