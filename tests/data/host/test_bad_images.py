"""Broken images that are left out: the same ones for whoever reads."""

import jax
import numpy as np
import pytest

from resnet.data.host.reader import LEFT_OUT
from resnet.data.host.transforms import EvalTransform
from resnet.data.normalization import channel_statistics
from resnet.errors import InputError
from tests.data import readers
from tests.data.in_memory import encode, make_source, smooth_image

NUM_RECORDS = 10
JPEG = encode(smooth_image(64, 64), 'JPEG')
PNG = encode(smooth_image(64, 64), 'PNG')
# Ways to be broken.
BROKEN = [JPEG[: len(JPEG) // 2], PNG[:-9], b'', b'<html>404</html>']


def make_reader(broken, *, seed=3, limit=100, rows=None, count=NUM_RECORDS):
  """Labels are the indices of the records; the broken ones are numbered."""
  records = [
    {'image': encode(smooth_image(9 + i, 12), 'PNG'), 'label': i}
    for i in range(count)
  ]
  for nth, index in enumerate(broken):
    records[index]['image'] = BROKEN[nth % len(BROKEN)]
  evaluate = EvalTransform(size=8, resize_size=8)
  return readers.make_reader(
    make_source(records, num_classes=count, channels=3),
    4,
    seed,
    transform=evaluate if seed is None else readers.AUGMENT,
    rows=rows,
    max_bad_images=limit,
  )


def test_the_next_good_record_replaces_a_broken_one():
  broken, whole = [2, 5, 6, 9], make_reader([])
  reader = make_reader(broken)
  next_good = {2: 3, 5: 7, 6: 7, 9: 0}
  for step in range(5):
    batch, expected = reader(step), whole(step)
    labels = [next_good.get(i, i) for i in expected['label'].tolist()]
    assert batch['label'].tolist() == labels
    assert batch['mask'].all()
    # The other rows are what they would have been.
    same = batch['label'] == expected['label']
    np.testing.assert_array_equal(batch['image'][same], expected['image'][same])
    met = [i for i in expected['label'].tolist() if i in broken]
    # On the way from 5 to 7 lies 6.
    assert len(batch.get(LEFT_OUT, [])) == len(met) + met.count(5)
    assert (LEFT_OUT in batch) == bool(met)


@pytest.mark.parametrize(
  ('seed', 'workers', 'first_step'), [(3, 0, 3), (3, 2, 3), (None, 0, 0)]
)
def test_batches_are_the_same_however_they_are_read(seed, workers, first_step):
  reader = make_reader([1, 2, 9], seed=seed)
  num_steps = 3 if seed is None else 7
  batches = list(
    readers.read_ahead(reader, first_step, num_steps, workers=workers)
  )
  expected = [reader(step) for step in range(first_step, num_steps)]
  assert any(LEFT_OUT in batch for batch in batches)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.pop(LEFT_OUT, None) == other.pop(LEFT_OUT, None)
    jax.tree.map(np.testing.assert_array_equal, batch, other)


@pytest.mark.parametrize('seed', [3, None])
def test_rows_of_all_processes_make_up_the_batch(seed):
  broken = [0, 1, 5]
  whole = make_reader(broken, seed=seed)
  parts = [make_reader(broken, seed=seed, rows=(row, 1)) for row in range(4)]
  for step in range(3):
    batch, rows = whole(step), [part(step) for part in parts]
    left_out = [text for row in rows for text in row.pop(LEFT_OUT, [])]
    assert batch.pop(LEFT_OUT, []) == left_out
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
    jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_in_evaluation_the_row_of_a_broken_image_is_masked():
  reader = make_reader([0, 4, 5, 6, 7], seed=None)
  batches = [reader(step) for step in range(3)]
  assert [len(batch.pop(LEFT_OUT, [])) for batch in batches] == [1, 4, 0]
  whole = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
  mask, good = whole['mask'], [1, 2, 3, 8, 9]
  np.testing.assert_array_equal(np.flatnonzero(mask), good)
  np.testing.assert_array_equal(whole['label'][mask], good)
  assert whole['image'].shape == (12, 8, 8, 3)
  assert not whole['image'][~mask].any()


def test_a_set_without_one_good_image_is_refused():
  for seed in (3, None):
    error = make_reader(range(NUM_RECORDS), seed=seed)(0)
    assert isinstance(error, InputError)
    assert 'can be decoded' in str(error)


def test_a_long_sequence_of_broken_images_is_an_error():
  reader = make_reader(range(1, 40), limit=5, count=40)
  for step in range(2):
    error = reader(step)
    assert isinstance(error, InputError)
    assert '6 broken images' in str(error)
    assert 'max_bad_images=5' in str(error)
  assert len(reader.source.records.keys_read) < 30


def test_statistics_leave_broken_images_out():
  images = np.eye(12, dtype=np.uint8).reshape(3, 4, 4, 3)
  good = [{'image': image} for image in images]
  source = make_source([*good, {'image': b''}], channels=3)
  expected = channel_statistics(make_source(good, channels=3), 4)
  assert channel_statistics(source, 4, max_bad_images=1) == expected
  for limit in (None, 0):
    with pytest.raises(InputError, match='record 3 of'):
      channel_statistics(source, 4, max_bad_images=limit)
  nothing = make_source([{'image': b''}] * 2, channels=3)
  with pytest.raises(InputError):
    channel_statistics(nothing, 4, max_bad_images=9)


@pytest.mark.parametrize('limit', [None, 1])
def test_an_image_too_long_to_be_resized_is_refused_by_name(limit):
  long = encode(np.zeros((1, 200_000, 3), np.uint8), 'PNG')
  records = [{'image': long, 'label': 0}, {'image': PNG, 'label': 1}]
  reader = readers.make_reader(
    make_source(records, channels=3),
    2,
    None,
    transform=EvalTransform(size=224, resize_size=256),
    max_bad_images=limit,
  )
  batch = reader(0)
  if limit:
    assert batch['mask'].tolist() == [False, True]
    (batch,) = batch[LEFT_OUT]
  for part in ('record 0', '200000 x 1', 'too long'):
    assert part in str(batch)
