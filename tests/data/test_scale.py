"""Sets of a million records, late steps, and memory over many batches."""

import pathlib
import subprocess
import sys
import time

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow_datasets as tfds

from resnet.data.datasets import open_source
from resnet.data.loader import LoaderOptions, read_ahead
from resnet.data.notes import Notes
from resnet.data.reader import BatchReader
from resnet.data.transforms import EvalTransform, StoredTransform
from tests.data.in_memory import make_source

ROOT = pathlib.Path(__file__).parent.parent.parent
NUM_RECORDS = 1_300_000


@pytest.fixture(scope='module')
def large_set(tmp_path_factory):
  """1.3 million records of 2x2 pixels, in the layout of ImageNet."""
  data_dir = tmp_path_factory.mktemp('large')
  place = data_dir / 'large' / '1.0.0'
  place.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(
        shape=(2, 2, 3), dtype=np.uint8, encoding='bytes'
      ),
      'label': tfds.features.ClassLabel(num_classes=10),
    }
  )
  data = features.serialize_example(
    {'image': np.full((2, 2, 3), 7, np.uint8), 'label': 3}
  )
  for shard in range(10):
    path = place / f'large-train.array_record-{shard:05}-of-00010'
    writer = array_record_module.ArrayRecordWriter(
      str(path), 'group_size:1,uncompressed'
    )
    for _ in range(NUM_RECORDS // 10):
      writer.write(data)
    writer.close()
  tfds.folder_dataset.write_metadata(
    data_dir=place,
    features=features,
    split_infos=[
      tfds.core.SplitInfo(
        name='train', shard_lengths=[NUM_RECORDS // 10] * 10, num_bytes=1
      )
    ],
    version='1.0.0',
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description='Large.',
  )
  return str(data_dir)


OPEN = """
import resource, sys, time
from resnet.data.datasets import open_source
from resnet.data.reader import BatchReader
from resnet.data.transforms import StoredTransform

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, start = peak(), time.monotonic()
source = open_source('large', 'train', data_dir=sys.argv[1])
opened = time.monotonic() - start
reader = BatchReader(source=source, transform=StoredTransform(), batch_size=256,
                     num_classes=10, seed=0, row_start=0, row_count=256)
reader(0)
print(len(source), opened, time.monotonic() - start, peak() - before)
"""


@pytest.mark.slow
def test_a_large_set_opens_soon_and_in_little_memory(large_set):
  words = [sys.executable, '-c', OPEN, large_set]
  output = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE)
  length, opened, first, megabytes = map(float, output.stdout.split())
  assert length == NUM_RECORDS
  assert opened < 2
  assert first < 3
  assert megabytes < 200


@pytest.mark.slow
def test_the_last_record_of_a_large_set_is_read(large_set):
  source = open_source('large', 'train', data_dir=large_set)
  for record in source.read([0, NUM_RECORDS - 1, NUM_RECORDS // 2]):
    assert record['label'] == 3 and (record['image'] == 7).all()


def make_reader(num_records, *, batch_size=8, transform=None):
  image = np.full((2, 2, 1), 7, np.uint8)
  source = make_source([{'image': image, 'label': 1}] * num_records)
  return BatchReader(
    source=source,
    transform=transform or StoredTransform(),
    batch_size=batch_size,
    num_classes=10,
    seed=0,
    row_start=0,
    row_count=batch_size,
  )


def test_step_one_million_costs_what_step_0_does():
  reader = make_reader(1000)
  reader(0)

  def seconds(step):
    times = []
    for nth in range(50):
      start = time.perf_counter()
      reader(step + nth)
      times.append(time.perf_counter() - start)
    return min(times)

  assert seconds(1_000_000) < 3 * seconds(0)


def resident_bytes():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * 4096


@pytest.mark.slow
def test_memory_does_not_grow_over_many_batches(data_dir):
  source = open_source('digits', 'train', data_dir=data_dir)
  reader = BatchReader(
    source=source,
    transform=EvalTransform(size=8, resize_size=9),
    batch_size=8,
    num_classes=10,
    seed=0,
    row_start=0,
    row_count=8,
  )
  options = LoaderOptions(
    num_workers=0, num_threads=2, prefetch_batches=4, max_worker_restarts=0
  )
  batches = read_ahead(
    reader, options, first_step=0, num_steps=20_001, notes=Notes()
  )
  sizes = []
  for step, _ in enumerate(batches):
    if step in (2000, 20_000):
      sizes.append(resident_bytes())
  assert sizes[1] - sizes[0] < 4 * 2**20


@pytest.mark.parametrize('threads', [1, 4])
@pytest.mark.parametrize('prefetch', [1, 6])
def test_no_more_is_read_ahead_than_is_said(threads, prefetch):
  reader = make_reader(1000)
  options = LoaderOptions(
    num_workers=0,
    num_threads=threads,
    prefetch_batches=prefetch,
    max_worker_restarts=0,
  )
  batches = read_ahead(
    reader, options, first_step=0, num_steps=1000, notes=Notes()
  )
  next(batches)
  time.sleep(0.3)
  read = len(reader.source.records.keys_read)
  batches.close()
  assert read <= options.max_batches * 8
