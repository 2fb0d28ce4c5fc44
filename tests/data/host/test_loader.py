"""Order, place, processes, errors and bounds of reading ahead."""

import threading
import time

import jax
import numpy as np
import pytest

from resnet.data.host import loader
from resnet.data.host.transforms import Transform
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.training.sharding import create_sharding
from tests.data.in_memory import encode, make_source
from tests.data.readers import AUGMENT, make_reader, read_ahead
from tests.programs import TIMEOUT_SECONDS, wait_until


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


@pytest.mark.parametrize(('batch_size', 'num_epochs'), [(32, 8), (300, 9)])
def test_each_epoch_is_a_permutation_though_batches_span_epochs(
  batch_size, num_epochs
):
  order = np.sort(read_order(0, 100, num_epochs, batch_size))
  np.testing.assert_array_equal(order, [range(100)] * num_epochs)


def test_every_epoch_of_every_seed_has_a_different_order():
  seeds = (0, 1, 2, 2**31, 2**32 - 1)
  orders = np.concatenate([read_order(seed, 50, 5, 50) for seed in seeds])
  assert len(np.unique(orders, axis=0)) == 25
  # Nor is one order another one that is shifted, or hardly shuffled.
  correlations = np.corrcoef(np.argsort(orders)) - np.eye(25)
  assert np.abs(correlations).max() < 0.65
  assert (np.diff(orders) == 1).mean() < 0.03


@pytest.mark.parametrize('batch_size', [1, 7, 64, 1000])
def test_evaluation_reads_each_example_once_in_stored_order(batch_size):
  source = numbered(130)
  num_steps = -(-130 // batch_size)
  batches = read_ahead(make_reader(source, batch_size, None), 0, num_steps)
  batches = jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
  types = {name: rows.dtype for name, rows in batches.items()}
  assert types == {'image': np.uint8, 'label': np.int32, 'mask': np.bool_}
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


@pytest.mark.parametrize(
  ('workers', 'broken', 'message'),
  [
    (1, {'image': b'\x89PNG cut'}, r'image of record 5 .*\(5\.png\) cannot'),
    (0, {'label': 10}, r'label of record 5 .*\(5\.png\) is 10; .* 0 to 9'),
    (0, {'label': -1}, r'label of record 5 .*\(5\.png\) is -1; .* 0 to 9'),
  ],
)
def test_a_broken_record_is_named_with_its_batch(broken, message, workers):
  png = encode(np.zeros((2, 2), np.uint8), 'PNG')
  names = [f'{index}.png' for index in range(8)]
  records = [{'image': png, 'label': 1, 'file_name': name} for name in names]
  records[5].update(broken)
  reader = make_reader(make_source(records), 2, None)
  batches = read_ahead(reader, 0, 4, workers=workers)
  assert next(batches)['mask'].all() and next(batches)['mask'].all()
  with pytest.raises(InputError, match=message):
    next(batches)


def test_only_records_of_the_remaining_steps_are_read():
  source = numbered(100)
  batches = read_ahead(make_reader(source, 32, 0), 1_000_000, 1_000_003)
  labels = np.concatenate([batch['label'] for batch in batches])
  assert len(labels) == 96
  assert sorted(source.records.keys_read) == sorted(labels)
  source = numbered(4)
  assert list(read_ahead(make_reader(source, 2, 0), 7, 7)) == []
  assert source.records.keys_read == []


@pytest.mark.parametrize(('threads', 'prefetch'), [(1, 1), (1, 5), (4, 2)])
def test_reading_ahead_is_bounded(threads, prefetch):
  source = numbered(100)
  reader = make_reader(source, 10, 0)
  batches = read_ahead(reader, 0, 1000, threads=threads, prefetch=prefetch)

  def num_read():
    return len(source.records.keys_read) / 10

  depth = max(threads, prefetch)
  for used in range(1, 31):
    next(batches)
    wait_until(lambda: num_read() >= used + depth - 1)  # noqa: B023
    assert num_read() <= used + depth + 1
  batches.close()
  assert list(batches) == []


def test_closing_stops_reading_ahead():
  turns = threading.Semaphore(1)

  class Blocked(Transform):
    def __call__(self, image, *_):
      assert turns.acquire(timeout=TIMEOUT_SECONDS)
      return image

  source, num_threads = numbered(100), threading.active_count()
  reader = make_reader(source, 1, 0, transform=Blocked())
  batches = read_ahead(reader, 0, 1000, threads=1, prefetch=9)
  next(batches)
  wait_until(lambda: len(source.records.keys_read) == 2)
  batches.close()
  turns.release(1000)
  wait_until(lambda: threading.active_count() <= num_threads)
  assert len(source.records.keys_read) == 2


def test_device_loader_gives_global_arrays_over_eight_devices():
  sharding = create_sharding().batch
  reader = make_reader(numbered(100), 16, 0)
  loaded = list(
    loader.DeviceLoader(read_ahead(reader, 0, 3), sharding, DataWarnings())
  )
  assert_equal_batches(loaded, map(reader, range(3)))
  for array in jax.tree.leaves(loaded):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
    rows = {s.device.id: s.index[0] for s in array.addressable_shards}
    assert rows == {n: slice(2 * n, 2 * n + 2) for n in range(8)}


def test_device_loader_counts_waiting_only_and_closes_its_batches(monkeypatch):
  reader, now, is_closed = make_reader(numbered(16), 8, 0), 0.0, False
  monkeypatch.setattr(time, 'monotonic', lambda: now)

  def slow_batches():
    nonlocal now, is_closed
    try:
      for step in range(9):
        now += 0.5
        yield reader(step)
    finally:
      is_closed = True

  batches = loader.DeviceLoader(
    slow_batches(), create_sharding().batch, DataWarnings()
  )
  assert batches.wait_seconds == 0
  for _ in range(3):
    next(batches)
    now += 2.0
  assert batches.wait_seconds == 1.5 and not is_closed
  batches.close()
  assert is_closed
  with pytest.raises(StopIteration):
    next(batches)
