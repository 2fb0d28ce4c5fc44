"""The size of training images as a function of the step."""

import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.sizes import Sizes, check_schedule, create_sizes
from resnet.errors import InputError

SCHEDULE = ((0.0, 8), (0.75, 12), (1.5, 16))


def resolve(schedule=SCHEDULE, **fields):
  config = fake.get_config()
  config.data.size_schedule = schedule
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return experiment.resolve(config)


def test_a_size_begins_with_the_first_batch_of_its_epoch():
  run = resolve()
  assert run.length.steps_per_epoch == 8
  assert run.sizes == Sizes(((0, 8), (6, 12), (12, 16)))
  found = [run.sizes.at(step) for step in (0, 5, 6, 11, 12, 15, 16)]
  assert found == [8, 8, 12, 12, 16, 16, 16]


def test_without_a_schedule_it_is_the_image_size():
  assert resolve(()).sizes == Sizes(((0, 16),))
  assert resolve(((0, 16),)).sizes == Sizes(((0, 16),))


def ffcv(epoch, start, end):
  """get_resolution of libffcv/ffcv-imagenet, from 160 to 192 pixels."""
  if epoch <= start:
    return 160
  if epoch >= end:
    return 192
  return int(np.round(np.interp(epoch, (start, end), (160, 192)) / 32)) * 32


# rn50_configs, of 16 and of 88 epochs: start_ramp and end_ramp.
@pytest.mark.parametrize(
  ('num_epochs', 'ramp', 'epoch'), [(16, (11, 13), 12), (88, (65, 76), 71)]
)
def test_the_ramps_of_ffcv_are_two_pairs(num_epochs, ramp, epoch):
  pairs = check_schedule(((0, 160), (epoch, 192)), image_size=192)
  steps_per_epoch = 1_281_167 / 512
  sizes = create_sizes(
    pairs,
    steps=lambda epochs: round(epochs * steps_per_epoch),
    num_steps=round(num_epochs * steps_per_epoch),
  )
  for epoch in range(num_epochs):
    first, last = (
      round(epoch * steps_per_epoch),
      int((epoch + 0.99) * steps_per_epoch),
    )
    assert sizes.at(first) == sizes.at(last) == ffcv(epoch, *ramp)


@pytest.mark.parametrize('crop', ['random_resized', 'pad', 'none'])
def test_batches_on_the_host_have_the_size_of_their_step(crop):
  run = resolve(data__crop=crop)
  reader = run.train_reader
  for step, size in ((5, 8), (6, 12), (12, 16)):
    batch = reader(step)
    assert batch['image'].shape == (64, size, size, 3)
    plan = reader.plan(step)
    transform = reader.transform.with_size(size)
    records = reader.source.read(plan.indices)
    for row in (0, 63):
      draws, index = plan.draws[row], plan.indices[row]
      image, box = reader.decode(draws, index, records[row])
      np.testing.assert_array_equal(
        batch['image'][row], transform(image, box, draws)
      )
      assert batch['label'][row] == records[row]['label']


def test_batches_for_the_device_are_as_stored_and_the_step_makes_the_size():
  run = resolve(data__augment_on='device', data__crop='random_resized')
  for step, size in ((5, 8), (6, 12), (12, 16)):
    assert run.train_reader(step)['image'].shape == (64, 16, 16, 3)
    now = run.at(step)
    assert now.image_shape == (size, size, 3)
    assert now.task.augment.size == size
    assert now.train_image_shape == run.train_image_shape == (16, 16, 3)


def test_tools_see_the_last_size_throughout():
  run = resolve().at_last_size()
  assert run.image_shape == run.train_image_shape == (16, 16, 3)
  assert run.train_reader(0)['image'].shape == (64, 16, 16, 3)
  assert run.sizes.at(0) == 16


def test_evaluation_has_a_size_of_its_own():
  assert resolve().eval_reader(0)['image'].shape[1:] == (16, 16, 3)
  run = resolve(data__eval_size=20, data__eval_resize=20)
  assert run.eval_image_shape == (20, 20, 3)
  assert run.at(0).eval_reader(0)['image'].shape[1:] == (20, 20, 3)


@pytest.mark.parametrize(
  ('schedule', 'message'),
  [
    ((8,), r'not made of pairs .*="\(\(0.0, 8\), \(10.0, 16\)\)"'),
    ((0, 16), 'not made of pairs'),
    (((0, 8, 1),), 'not made of pairs'),
    (((0, 8.5), (1, 16)), 'not made of pairs'),
    (((0, True), (1, 16)), 'not made of pairs'),
    ((('a', 8), (1, 16)), 'not made of pairs'),
    (((0, 8), (float('nan'), 16)), 'not made of pairs'),
    (((0, 8), (1e999, 16)), 'not made of pairs'),
    (((0.5, 8), (1, 16)), r'begins at epoch 0.5: .* \(0.0, 8\)'),
    (((0, 8), (1, 12), (1, 16)), 'must rise'),
    (((0, 8), (1.5, 12), (1, 16)), 'must rise'),
    (((0, 12), (1, 8), (1.5, 16)), 'must rise'),
    (((0, 0), (1, 16)), 'at least 1 pixel'),
    (((0, -8), (1, 16)), 'at least 1 pixel'),
    (((0, 8), (1, 12)), r'image_size=16 .*--config.data.image_size=12'),
    (((0, 8), (2, 16)), 'the 16 pixels of epoch 2.0 .* last of the run'),
    (((0, 8), (0.01, 16)), 'the 8 pixels of epoch 0.0 .* after step 0'),
    (((0, 1), (1, 16)), r'crop_padding=2 is not in 0 \.\. 1'),
  ],
)
def test_bad_schedules_are_named(schedule, message):
  with pytest.raises(InputError, match=message) as error:
    resolve(schedule)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('crop', ['pad', 'none'])
def test_a_crop_on_the_device_that_does_not_resize_is_refused(crop):
  with pytest.raises(InputError, match=f"'random_resized': '{crop}' does not"):
    resolve(data__augment_on='device', data__crop=crop)
