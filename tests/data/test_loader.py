"""Order, place, processes, errors and bounds of the data road."""

import time

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from resnet.data import loader
from resnet.data.datasets import open_source
from resnet.data.notes import Notes
from resnet.data.transforms import (
  EvalTransform,
  StoredTransform,
  TrainTransform,
)
from resnet.errors import InputError
from tests.data.in_memory import encode, make_source

KEEP = EvalTransform(size=2, resize_size=2)
AUGMENT = TrainTransform(
  size=8,
  crop='random_resized',
  area=(0.08, 1.0),
  aspect=(3 / 4, 4 / 3),
  padding=0,
  flip=True,
)


def make_reader(source, batch_size, seed, *, transform=KEEP, rows=None):
  start, count = rows or (0, batch_size)
  return loader.BatchReader(
    source=source,
    transform=transform,
    batch_size=batch_size,
    num_classes=source.num_classes,
    seed=seed,
    row_start=start,
    row_count=count,
  )


def read_ahead(
  reader,
  first_step,
  num_steps,
  *,
  workers=0,
  threads=2,
  prefetch=2,
  restarts=0,
  notes=None,
):
  options = loader.LoaderOptions(
    num_workers=workers,
    num_threads=threads,
    prefetch_batches=prefetch,
    max_worker_restarts=restarts,
  )
  return loader.read_ahead(
    reader,
    options,
    first_step=first_step,
    num_steps=num_steps,
    notes=notes or Notes(),
  )


def numbered(count):
  """A source whose labels are the indices of the records."""
  image = np.full((2, 2, 1), 7, np.uint8)
  records = [{'image': image, 'label': index} for index in range(count)]
  return make_source(records, num_classes=count)


def read_order(seed, num_examples, num_epochs, batch_size):
  """Returns the indices that are read, [num_epochs, num_examples]."""
  reader = make_reader(numbered(num_examples), batch_size, seed)
  steps = range(num_epochs * num_examples // batch_size)
  labels = [reader(step)['label'] for step in steps]
  return np.reshape(labels, (num_epochs, num_examples))


def assert_equal_batches(batches, expected):
  for batch, other in zip(batches, expected, strict=True):
    assert batch.keys() == other.keys() == {'image', 'label', 'mask'}
    for name in batch:
      assert batch[name].dtype == other[name].dtype
      np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize('batch_size', [25, 32, 300])
def test_each_epoch_is_a_permutation_though_batches_span_epochs(batch_size):
  order = np.sort(read_order(0, 100, 24, batch_size))
  np.testing.assert_array_equal(order, [range(100)] * 24)


def test_every_epoch_of_every_seed_has_an_order_of_its_own():
  seeds = (*range(8), 2**31, 2**32 - 1)
  orders = np.concatenate([read_order(seed, 50, 5, 50) for seed in seeds])
  assert len(np.unique(orders, axis=0)) == 50
  # Nor is one order another one that is shifted, or hardly shuffled.
  correlations = np.corrcoef(np.argsort(orders)) - np.eye(50)
  assert np.abs(correlations).max() < 0.65
  assert (np.diff(orders) == 1).mean() < 0.03


def test_training_batch_has_these_types_and_no_padding():
  batch = make_reader(numbered(10), 4, 0)(0)
  assert {name: (rows.dtype, rows.shape) for name, rows in batch.items()} == {
    'image': (np.uint8, (4, 2, 2, 1)),
    'label': (np.int32, (4,)),
    'mask': (np.bool_, (4,)),
  }
  assert batch['mask'].all() and (batch['image'] == 7).all()


@pytest.mark.parametrize(
  ('workers', 'threads', 'first_step'),
  [(0, 1, 0), (0, 4, 0), (0, 4, 13), (0, 1, 17), (2, 1, 13), (3, 2, 14)],
)
def test_batch_is_the_same_however_it_is_read(
  workers, threads, first_step, data_dir
):
  source = open_source('digits', 'train', data_dir=data_dir)
  reader = make_reader(source, 96, 3, transform=AUGMENT)
  # The first epoch ends within batch 14.
  expected = [reader(step) for step in range(first_step, 18)]
  batches = read_ahead(reader, first_step, 18, workers=workers, threads=threads)
  assert_equal_batches(batches, expected)


@pytest.mark.parametrize('seed', [3, None])
@pytest.mark.parametrize('num_processes', [1, 2, 4])
def test_rows_of_the_processes_make_the_batch(seed, num_processes, data_dir):
  source = open_source('digits', 'test', data_dir=data_dir)
  whole = make_reader(source, 64, seed, transform=AUGMENT)
  count = 64 // num_processes
  parts = [
    make_reader(source, 64, seed, transform=AUGMENT, rows=(start, count))
    for start in range(0, 64, count)
  ]
  for step in (0, 5):  # Evaluation pads from row 40 of batch 5 on.
    batches = [part(step) for part in parts]
    joined = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
    assert_equal_batches([joined], [whole(step)])


@pytest.mark.parametrize('batch_size', [1, 7, 64, 1000])
def test_evaluation_reads_each_example_once_in_stored_order(batch_size):
  source = numbered(130)
  num_steps = -(-130 // batch_size)
  batches = read_ahead(make_reader(source, batch_size, None), 0, num_steps)
  batches = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
  assert sorted(source.records.keys_read) == list(range(130))
  is_example = np.arange(num_steps * batch_size) < 130
  np.testing.assert_array_equal(batches['mask'], is_example)
  np.testing.assert_array_equal(batches['label'][:130], range(130))
  assert (batches['image'][:130] == 7).all()
  assert not batches['image'][130:].any() and not batches['label'][130:].any()


def augment_one_image(seed):
  """Returns 16 epochs of four equal images, each as bytes."""
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 1), np.uint8)
  source = make_source([{'image': image, 'label': 0}] * 4)
  reader = make_reader(source, 4, seed, transform=AUGMENT)
  return [row.tobytes() for step in range(16) for row in reader(step)['image']]


def test_augmentation_depends_on_seed_and_position_only():
  crops = augment_one_image(0)
  assert len(set(crops)) == 64
  assert augment_one_image(0) == crops
  assert not set(augment_one_image(1)) & set(crops)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize(
  ('broken', 'message'),
  [
    ({'image': b'\x89PNG cut'}, r'image of record 5 .*\(5\.png\) cannot be'),
    ({'label': 10}, r'label of record 5 .*\(5\.png\) is 10; expected 0 to 9'),
  ],
)
def test_broken_record_is_named(broken, message, workers):
  png = encode(np.zeros((2, 2), np.uint8), 'PNG')
  names = [f'{index}.png' for index in range(8)]
  records = [{'image': png, 'label': 1, 'file_name': name} for name in names]
  records[5].update(broken)
  reader = make_reader(make_source(records), 2, None)
  batches = read_ahead(reader, 0, 4, workers=workers)
  assert next(batches)['mask'].all() and next(batches)['mask'].all()
  with pytest.raises(InputError, match=message):
    next(batches)


def test_label_of_an_unlabelled_split_is_refused():
  records = [{'image': np.zeros((2, 2, 1), np.uint8), 'label': -1}]
  error = make_reader(make_source(records), 1, 0)(0)
  assert isinstance(error, InputError)
  assert 'is -1; expected 0 to 9' in str(error)


def test_broken_record_is_returned_where_all_rows_are_padding():
  source = make_source([{'image': b'', 'label': 0}])
  error = make_reader(source, 8, None, rows=(4, 4))(0)
  assert isinstance(error, InputError)


def test_step_one_million_reads_only_its_own_records():
  source = numbered(100)
  batches = read_ahead(make_reader(source, 32, 0), 1_000_000, 1_000_003)
  labels = np.concatenate([batch['label'] for batch in batches])
  assert len(labels) == 96
  assert sorted(source.records.keys_read) == sorted(labels)


def test_nothing_is_read_where_no_step_is_left():
  source = numbered(4)
  assert list(read_ahead(make_reader(source, 2, 0), 7, 7)) == []
  assert source.records.keys_read == []


def count_records(source):
  """Returns how many records were read when reading paused."""
  count = -1
  while count != len(source.records.keys_read):
    count = len(source.records.keys_read)
    time.sleep(0.2)
  return count


@pytest.mark.parametrize(('threads', 'prefetch'), [(1, 1), (1, 5), (4, 2)])
def test_reading_ahead_is_bounded_and_ends_with_close(threads, prefetch):
  source = numbered(100)
  reader = make_reader(source, 10, 0)
  batches = read_ahead(reader, 0, 1000, threads=threads, prefetch=prefetch)
  for used in (1, 2):
    next(batches)
    ahead = count_records(source) / 10 - used
    assert 1 <= ahead <= prefetch + threads
  batches.close()
  assert list(batches) == []
  assert count_records(source) / 10 == used + ahead


@pytest.mark.parametrize(
  ('argument', 'field'),
  [
    ({'workers': -1}, 'num_workers=-1'),
    ({'threads': 0}, 'num_threads=0'),
    ({'prefetch': 0}, 'prefetch_batches=0'),
    ({'restarts': -1}, 'max_worker_restarts=-1'),
  ],
)
def test_bad_option_is_named(argument, field):
  with pytest.raises(InputError, match=f'data.{field} '):
    read_ahead(None, 0, 1, **argument)


@pytest.fixture(scope='module')
def sharding():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  return NamedSharding(mesh, PartitionSpec('data'))


def test_device_loader_gives_global_arrays_over_eight_devices(sharding):
  reader = make_reader(numbered(100), 16, 0)
  loaded = list(
    loader.DeviceLoader(read_ahead(reader, 0, 3), sharding, Notes())
  )
  assert_equal_batches(loaded, map(reader, range(3)))
  for array in jax.tree.leaves(loaded):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
    rows = {s.device.id: s.index[0] for s in array.addressable_shards}
    assert rows == {n: slice(2 * n, 2 * n + 2) for n in range(8)}


def test_device_loader_counts_waiting_and_nothing_else(sharding):
  reader = make_reader(numbered(16), 8, 0)

  def slow_batches():
    for step in range(3):
      time.sleep(0.1)
      yield reader(step)

  batches = loader.DeviceLoader(slow_batches(), sharding, Notes())
  assert batches.wait_seconds == 0
  start = time.monotonic()
  for _ in batches:
    time.sleep(0.2)
  assert 0.3 <= batches.wait_seconds <= time.monotonic() - start - 0.6


def test_closing_the_device_loader_drops_what_was_to_be_read(sharding):
  class Slow(StoredTransform):
    def __call__(self, image, *_):
      time.sleep(0.02)
      return image

  source = numbered(100)
  reader = make_reader(source, 8, 0, transform=Slow())
  ahead = read_ahead(reader, 0, 1000, threads=1, prefetch=9)
  batches = loader.DeviceLoader(ahead, sharding, Notes())
  next(batches)
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)
  # One was given, a second may have been begun; ten were on the list.
  assert count_records(source) < 10 * 8
