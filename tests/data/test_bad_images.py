"""Broken images that are left out: the same ones for whoever reads."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from resnet.data import loader
from resnet.data.normalization import channel_statistics
from resnet.data.notes import Notes
from resnet.data.reader import LEFT_OUT, BatchReader
from resnet.data.transforms import EvalTransform, TrainTransform
from resnet.errors import InputError
from tests.data.in_memory import encode, make_source, smooth_image

NUM_RECORDS = 10
JPEG = encode(smooth_image(64, 64), 'JPEG')
PNG = encode(smooth_image(64, 64), 'PNG')
# Ways to be broken.
BROKEN = [JPEG[: len(JPEG) // 2], PNG[:-9], b'', b'<html>404</html>']
AUGMENT = TrainTransform(
  size=8,
  crop='random_resized',
  area=(0.08, 1.0),
  aspect=(3 / 4, 4 / 3),
  padding=0,
  flip=True,
)


def make_reader(broken, *, seed=3, limit=100, rows=(0, 4), count=NUM_RECORDS):
  """Labels are the indices of the records; the broken ones are numbered."""
  records = [
    {'image': encode(smooth_image(9 + i, 12), 'PNG'), 'label': i}
    for i in range(count)
  ]
  for nth, index in enumerate(broken):
    records[index]['image'] = BROKEN[nth % len(BROKEN)]
  is_train = seed is not None
  return BatchReader(
    source=make_source(records, num_classes=count, channels=3),
    transform=AUGMENT if is_train else EvalTransform(size=8, resize_size=8),
    batch_size=4,
    num_classes=count,
    seed=seed,
    row_start=rows[0],
    row_count=rows[1],
    max_bad_images=limit,
  )


def read_ahead(reader, first_step, num_steps, workers=0):
  options = loader.LoaderOptions(
    num_workers=workers,
    num_threads=2,
    prefetch_batches=2,
    max_worker_restarts=0,
  )
  return loader.read_ahead(
    reader, options, first_step=first_step, num_steps=num_steps, notes=Notes()
  )


@pytest.mark.parametrize('image', BROKEN)
def test_broken_record_is_named_where_none_may_be(image):
  source = make_source([{'image': image, 'file_name': b'a.JPEG'}], channels=3)
  with pytest.raises(InputError, match=r'record 0 of made/train \(a\.JPEG\)'):
    source.decode(0, source.read([0])[0])
  reader = make_reader([2], limit=None)
  assert any(isinstance(reader(step), InputError) for step in range(3))


def test_the_next_record_that_decodes_takes_the_place():
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
  ('workers', 'first_step'), [(0, 0), (0, 3), (1, 0), (2, 3)]
)
@pytest.mark.parametrize('seed', [3, None])
def test_batch_is_the_same_however_it_is_read(workers, first_step, seed):
  reader = make_reader([1, 2, 9], seed=seed)
  num_steps = 3 if seed is None else 7
  batches = list(read_ahead(reader, first_step, num_steps, workers))
  expected = [reader(step) for step in range(first_step, num_steps)]
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected, strict=True):
    assert batch.pop(LEFT_OUT, None) == other.pop(LEFT_OUT, None)
    jax.tree.map(np.testing.assert_array_equal, batch, other)


@pytest.mark.parametrize('seed', [3, None])
def test_rows_of_the_processes_make_the_batch(seed):
  broken = [0, 1, 5]
  whole = make_reader(broken, seed=seed)
  parts = [make_reader(broken, seed=seed, rows=(row, 1)) for row in range(4)]
  for step in range(3):
    batch, rows = whole(step), [part(step) for part in parts]
    left_out = [text for row in rows for text in row.pop(LEFT_OUT, [])]
    assert batch.pop(LEFT_OUT, []) == left_out
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *rows)
    jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_in_evaluation_the_row_does_not_count():
  reader = make_reader([0, 4, 5, 6, 7], seed=None)
  batches = [reader(step) for step in range(3)]
  masks = np.concatenate([batch['mask'] for batch in batches])
  good = [1, 2, 3, 8, 9]
  np.testing.assert_array_equal(np.flatnonzero(masks), good)
  labels = np.concatenate([batch['label'] for batch in batches])
  np.testing.assert_array_equal(labels[masks], good)
  images = np.concatenate([batch['image'] for batch in batches])
  assert not images[~masks].any() and images.shape == (12, 8, 8, 3)
  assert [len(batch.get(LEFT_OUT, [])) for batch in batches] == [1, 4, 0]


def test_where_no_image_decodes_it_is_an_error():
  for seed in (3, None):
    reader = make_reader(range(NUM_RECORDS), seed=seed)
    error = reader(0)
    assert isinstance(error, InputError)
    assert 'can be decoded' in str(error)


def test_a_long_run_of_broken_images_is_given_up():
  reader = make_reader(range(1, 40), limit=5, count=40)
  reader.source.records.keys_read.clear()
  errors = [reader(step) for step in range(2)]
  for error in errors:
    assert isinstance(error, InputError)
    assert '6 broken images' in str(error)
    assert 'max_bad_images=5' in str(error)
  assert len(reader.source.records.keys_read) < 30


def test_a_label_out_of_range_is_an_error_all_the_same():
  reader = make_reader([])
  reader.source.records._records[4]['label'] = 99
  errors = [e for e in map(reader, range(3)) if isinstance(e, InputError)]
  assert errors and 'is 99; expected 0 to 9' in str(errors[0])


def test_notes_name_each_image_once_and_count_different_ones():
  notes = Notes(2)
  notes.leave_out(['a.', 'b.', 'a.'])
  notes.leave_out(['b.'])
  notes.warn('c')
  assert notes.take() == [
    'warning: a. It is left out.',
    'warning: b. It is left out.',
    'warning: c',
  ]
  assert notes.take() == []
  with pytest.raises(
    InputError, match=r'3 broken images .*=2.* The last one: d'
  ):
    notes.leave_out(['d.'])
  with pytest.raises(InputError):
    Notes().leave_out(['a.'])


def test_device_loader_counts_what_is_left_out_and_passes_arrays_only():
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  reader, notes = make_reader([1, 2, 9]), Notes(100)
  batches = loader.DeviceLoader(read_ahead(reader, 0, 5), sharding, notes)
  counts = []
  for batch in batches:
    assert batch.keys() == {'image', 'label', 'mask'}
    counts.append(batches.num_left_out)
  expected = [len(reader(step).get(LEFT_OUT, [])) for step in range(5)]
  assert counts == np.cumsum(expected).tolist()
  assert len(notes.take()) == 3


def test_statistics_leave_broken_images_out():
  good = [
    {'image': image} for image in np.eye(12, dtype=np.uint8).reshape(3, 4, 4, 3)
  ]
  records = [good[0], {'image': b''}, *good[1:]]
  source = make_source(records, channels=3)
  expected = channel_statistics(make_source(good, channels=3), 4)
  assert channel_statistics(source, 4, max_bad_images=1) == expected
  for limit in (None, 0):
    with pytest.raises(InputError, match='record 1 of'):
      channel_statistics(source, 4, max_bad_images=limit)
  nothing = make_source([{'image': b''}] * 2, channels=3)
  with pytest.raises(InputError):
    channel_statistics(nothing, 4, max_bad_images=9)
