"""Repeated augmentation: which images a batch has, and how often."""

import collections
import dataclasses

import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.order import TrainingOrder
from resnet.errors import InputError


def batches(count, **fields):
  order = TrainingOrder(**{'length': 100, 'seed': 3, 'batch_size': 20} | fields)
  size = order.batch_size
  return [[order(k * size + i) for i in range(size)] for k in range(count)]


@pytest.mark.parametrize('repeats', [2, 4, 5])
def test_a_batch_has_each_of_its_images_so_often(repeats):
  for batch in batches(15, repeats=repeats):
    counts = collections.Counter(batch)
    assert set(counts.values()) == {repeats}
    assert len(counts) == 20 // repeats


def test_an_epoch_has_the_first_images_of_its_order():
  plain, repeated = (batches(15, repeats=repeats) for repeats in (1, 4))
  for first in (0, 5, 10):  # Five batches an epoch.
    order = np.concatenate(plain[first : first + 5])
    seen = np.concatenate(repeated[first : first + 5])
    assert sorted(seen) == sorted(np.repeat(order[:25], 4))
  # Another subset in each epoch.
  assert set(np.concatenate(repeated[:5])) != set(
    np.concatenate(repeated[5:10])
  )


def test_over_many_epochs_all_images_are_seen_alike():
  seen = np.concatenate(batches(5 * 400, repeats=4))
  counts = np.bincount(seen, minlength=100) / 4
  # Each is in an epoch with a chance of 1/4: 100 +- 8.7 times in 400.
  assert abs(counts - 100).max() < 4 * 8.7
  assert 6 < counts.std() < 12


@pytest.mark.parametrize(('batch_size', 'repeats'), [(20, 4), (20, 3), (7, 2)])
def test_groups_of_batch_statistics_see_no_image_twice(batch_size, repeats):
  # 2,100 images, so that no epoch ends within these batches.
  for batch in batches(10, length=2100, batch_size=batch_size, repeats=repeats):
    # Parts of the batch: first copies, second copies, ...
    for part in np.array_split(batch, repeats):
      assert len(set(part)) == len(part)


@pytest.mark.parametrize('repeats', [1, 3, 4])
@pytest.mark.parametrize('batch_size', [1, 7, 20, 100])
def test_no_place_of_a_batch_is_lost(batch_size, repeats):
  order = TrainingOrder(
    length=100, seed=0, batch_size=batch_size, repeats=repeats
  )
  places = [order._place(row) for row in range(batch_size)]
  assert sorted(places) == list(range(batch_size))


def timm_epoch(epoch, *, length, ranks, repeats):
  """Returns the images that timm deals to its processes, [ranks, ...]."""
  samplers = pytest.importorskip('timm.data.distributed_sampler')
  rows = []
  for rank in range(ranks):
    # (By default timm leaves out up to 255 images of an epoch.)
    sampler = samplers.RepeatAugSampler(
      range(length), ranks, rank, num_repeats=repeats, selected_round=0
    )
    sampler.set_epoch(epoch)
    rows.append(list(sampler))
  return np.array(rows)


def our_epoch(epoch, *, length, batch_size, repeats):
  """Returns the images of the batches of an epoch, [batches, batch_size]."""
  count = length // batch_size
  fields = {'length': length, 'batch_size': batch_size, 'repeats': repeats}
  return np.array(batches((epoch + 1) * count, **fields)[epoch * count :])


@pytest.mark.parametrize('epoch', [0, 1, 2])
@pytest.mark.parametrize('repeats', [2, 3, 4])
def test_parts_of_a_batch_are_those_of_the_processes_of_timm(repeats, epoch):
  part, count = 5, 8
  size = part * repeats
  ours = our_epoch(
    epoch, length=count * size, batch_size=size, repeats=repeats
  ).reshape(count, repeats, part)
  theirs = timm_epoch(
    epoch, length=count * size, ranks=repeats, repeats=repeats
  ).reshape(repeats, count, part)
  # The shuffles differ: an image is known by its place in that of its epoch.
  our_places = np.argsort(
    our_epoch(epoch, length=count * size, batch_size=size, repeats=1).ravel()
  )
  their_places = np.argsort(
    timm_epoch(epoch, length=count * size, ranks=1, repeats=1).ravel()
  )
  np.testing.assert_array_equal(
    our_places[ours], their_places[theirs].swapaxes(0, 1)
  )


@pytest.mark.parametrize(
  ('repeats', 'ranks', 'length'),
  # In the last one an epoch ends within the copies of an image.
  [(3, 3, 240), (3, 4, 240), (4, 8, 240), (2, 8, 240), (4, 5, 230)],
)
def test_an_epoch_has_as_many_images_as_often_as_that_of_timm(
  repeats, ranks, length
):
  seen = []
  for epoch in range(6):
    theirs = timm_epoch(epoch, length=length, ranks=ranks, repeats=repeats)
    ours = our_epoch(
      epoch, length=length, batch_size=2 * ranks, repeats=repeats
    )
    assert ours.size == theirs.size == length
    ours_often, theirs_often = (
      collections.Counter(collections.Counter(x.ravel().tolist()).values())
      for x in (ours, theirs)
    )
    assert ours_often == theirs_often
    assert ours_often[repeats] == length // repeats
    # What a process has in a step, a group of batch statistics has here.
    for group in (*ours.reshape(-1, 2), *theirs.reshape(-1, 2)):
      assert group[0] != group[1]
    seen.append([set(x.ravel().tolist()) for x in (ours, theirs)])
  # Each epoch chooses anew: (1 - 1 / r) ** 6 of the images are in none.
  chance = (1 - 1 / repeats) ** 6
  for epochs in zip(*seen, strict=True):
    missing = length - len(set().union(*epochs))
    # (An upper limit of its spread: the epochs' choices are fixed in size.)
    spread = (length * chance * (1 - chance)) ** 0.5
    assert abs(missing - length * chance) < 4 * spread


def config(**fields):
  result = fake.get_config()
  result.data.crop = 'random_resized'
  result.update_from_flattened_dict(fields)
  return result


def test_copies_are_cropped_anew_and_processes_share_a_batch():
  run = experiment.resolve(config(**{'data.repeats': 4, 'batch_size': 64}))
  batch = run.train_reader(3)
  labels = batch['label'].reshape(4, 16)
  assert (labels == labels[0]).all()
  copies = batch['image'].reshape(4, 16, -1)
  for i, j in ((0, 1), (0, 2), (1, 3)):
    assert (copies[i] != copies[j]).any(axis=1).all()
  for start in (0, 32):
    half = dataclasses.replace(run.train_reader, row_start=start, row_count=32)
    for name, rows in half(3).items():
      np.testing.assert_array_equal(rows, batch[name][start : start + 32])


@pytest.mark.parametrize(('repeats', 'says'), [(0, 'too small'), (65, 'more')])
def test_bad_numbers_are_refused(repeats, says):
  with pytest.raises(InputError, match=f'data.repeats={repeats} .*{says}'):
    experiment.resolve(config(**{'data.repeats': repeats}))
