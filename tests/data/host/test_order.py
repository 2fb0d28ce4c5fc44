"""The order of training images, and repeated augmentation."""

import numpy as np
import pytest

from resnet.data.host.order import TrainingOrder
from resnet.errors import InputError
from tests.runs import resolve


def batches(count, **fields):
  order = TrainingOrder(**{'length': 100, 'seed': 3, 'batch_size': 20} | fields)
  size = order.batch_size
  return [order(range(k * size, (k + 1) * size)) for k in range(count)]


def test_the_order_of_a_seed_never_changes():
  order = np.ravel(batches(6))
  assert order[:8].tolist() == [4, 7, 27, 57, 67, 55, 42, 78]
  assert order[100:104].tolist() == [13, 27, 12, 70]


@pytest.mark.parametrize('repeats', [2, 4, 5])
def test_a_batch_has_first_copies_first_then_the_others(repeats):
  # So timm and torchvision deal copies out to so many processes.
  plain = np.reshape(batches(5), -1)
  for k, batch in enumerate(batches(5, repeats=repeats)):
    size = 20 // repeats
    parts = np.reshape(batch, (repeats, size))
    assert (parts == plain[k * size : (k + 1) * size]).all()


@pytest.mark.parametrize(('batch_size', 'repeats'), [(20, 4), (25, 3)])
def test_an_epoch_has_the_first_images_of_its_order(batch_size, repeats):
  sizes = {'batch_size': batch_size}
  count = 100 // batch_size
  plain = np.reshape(batches(3 * count, **sizes), (3, 100))
  repeated = np.reshape(batches(3 * count, repeats=repeats, **sizes), (3, 100))
  for order, seen in zip(plain, repeated, strict=True):
    assert sorted(seen) == sorted(np.repeat(order, repeats)[:100])
  # Another subset in each epoch.
  assert set(repeated[0]) != set(repeated[1])


def test_over_many_epochs_all_images_are_seen_equally_often():
  seen = np.concatenate(batches(2 * 50, length=40, repeats=4))
  counts = np.bincount(seen, minlength=40) / 4
  # Each is in an epoch with a chance of 1/4: 12.5 +- 3.1 times in 50.
  assert abs(counts - 12.5).max() < 4 * 3.1
  assert 1.8 < counts.std() < 4.6


@pytest.mark.parametrize(('batch_size', 'repeats'), [(20, 4), (20, 3), (7, 2)])
def test_groups_of_batch_statistics_see_no_image_twice(batch_size, repeats):
  # 2,100 images, so that no epoch ends within these batches.
  for batch in batches(10, length=2100, batch_size=batch_size, repeats=repeats):
    # Parts of the batch: first copies, second copies, ...
    for part in np.array_split(batch, repeats):
      assert len(set(part)) == len(part)


@pytest.mark.parametrize('repeats', [0, 65])
def test_bad_numbers_are_refused(repeats):
  with pytest.raises(InputError, match=f'data.repeats={repeats} '):
    resolve(data__repeats=repeats)
