"""Batches for the step: which records, in which order, at which step.

The place in the data is a function of (seed, step): a run that resumes at
step n asks for batch n, and gets the bytes it would have got, whatever the
number of threads, worker processes, JAX processes or devices.
"""

from collections.abc import Callable, Generator, Iterator
import dataclasses
import functools
import time
from typing import cast

import cv2
import grain.python as grain
import jax
import numpy as np

from resnet.data.datasets import Record, Source
from resnet.errors import InputError

HostBatch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# One key each, so that the order says nothing about the crops.
_ORDER_STREAM, _AUGMENT_STREAM = 0, 1


def _derive(seed: int, stream: int) -> int:
  """Returns 32 bits that differ for neighbouring seeds and streams.

  Grain seeds epoch e with seed + e: without this, epoch 1 of seed 0 would
  have the order of epoch 0 of seed 1.
  """
  return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchReader:
  """Reads this process's rows of global batch number `step`.

  Global batch k holds the positions k * batch_size + (0 .. batch_size - 1) of
  the stream of examples. A training stream is an endless row of epochs, each
  a permutation of the whole set, so batches may span two epochs and no
  example is dropped. An evaluation stream is the set in stored order; rows
  past its end are zeros with mask False.

  Attributes:
    source: the records.
    transform: (image, rng) -> image of one fixed shape.
    batch_size: global, images.
    num_classes: labels must be below.
    seed: of order and augmentation; None reads in order, once.
    row_start: the first row of the global batch that is this process's.
    row_count: the number of its rows, images.
  """

  source: Source
  transform: Transform
  batch_size: int
  num_classes: int
  seed: int | None
  row_start: int
  row_count: int

  @functools.cached_property
  def _order(self) -> grain.MapDataset:
    assert self.seed is not None
    order = grain.MapDataset.range(len(self.source))
    return order.shuffle(seed=_derive(self.seed, _ORDER_STREAM)).repeat()

  @functools.cached_property
  def _augment_key(self) -> int:
    return _derive(self.seed or 0, _AUGMENT_STREAM)

  def __call__(self, step: int) -> HostBatch | InputError:
    """Returns 'image' uint8 [b, H, W, C], 'label' int32 [b], 'mask' bool [b].

    An `InputError` is returned, not raised, so that it crosses the border of
    a worker process as it is.
    """
    cv2.setNumThreads(0)  # The threads are Grain's.
    start = step * self.batch_size + self.row_start
    positions = range(start, start + self.row_count)
    if self.seed is None:
      positions = range(start, min(positions.stop, len(self.source)))
      indices = list(positions)
    else:
      indices = [cast(int, self._order[position]) for position in positions]
    try:
      examples = [
        self._example(*example)
        for example in zip(
          positions, indices, self.source.read(indices), strict=True
        )
      ]
      return self._stack(examples)
    except InputError as error:
      return error

  def keys(self, step: int) -> list[str]:
    """Returns the names of the records of a training batch, not decoded."""
    start = step * self.batch_size + self.row_start
    indices = [
      cast(int, self._order[position])
      for position in range(start, start + self.row_count)
    ]
    records = self.source.read(indices)
    return list(map(self.source.key, indices, records))

  def _example(
    self, position: int, index: int, record: Record
  ) -> tuple[np.ndarray, int]:
    label = int(record['label'])
    if not 0 <= label < self.num_classes:
      raise InputError(
        f'The label of {self.source.key(index, record)} is {label}; expected'
        f' 0 to {self.num_classes - 1} (model.num_classes={self.num_classes}).'
      )
    image = self.source.decode(index, record)
    # The counter-based generator costs nothing to key by position.
    rng = np.random.Generator(
      np.random.Philox(key=[self._augment_key, position])
    )
    return self.transform(image, rng), label

  def _stack(self, examples: list[tuple[np.ndarray, int]]) -> HostBatch:
    shape = examples[0][0].shape if examples else self._image_shape
    images = np.zeros((self.row_count, *shape), np.uint8)
    labels = np.zeros(self.row_count, np.int32)
    mask = np.zeros(self.row_count, bool)
    for row, (image, label) in enumerate(examples):
      images[row], labels[row], mask[row] = image, label, True
    return {'image': images, 'label': labels, 'mask': mask}

  @functools.cached_property
  def _image_shape(self) -> tuple[int, ...]:
    """Of a batch that is all padding: the shape of the first example."""
    (record,) = self.source.read([0])
    return self._example(0, 0, record)[0].shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
  """How fast to read; the batches are the same for every choice.

  Attributes:
    num_workers: processes that read ahead; 0 reads in threads of this one.
    num_threads: threads in each process; a thread makes whole batches.
    prefetch_batches: batches that wait, ready, in each process. The memory is
      prefetch_batches * max(num_workers, 1) batches of uint8 images.
  """

  num_workers: int
  num_threads: int
  prefetch_batches: int

  def __post_init__(self):
    for name, least in (
      ('num_workers', 0),
      ('num_threads', 1),
      ('prefetch_batches', 1),
    ):
      if getattr(self, name) < least:
        raise InputError(
          f'data.{name}={getattr(self, name)} is too small: at least {least}.'
        )


def read_ahead(
  reader: BatchReader,
  options: LoaderOptions,
  *,
  first_step: int,
  num_steps: int,
) -> Generator[HostBatch, None, None]:
  """Yields batches first_step .. num_steps - 1, read ahead of their use.

  Raises:
    InputError: from the iterator, for a record that is broken.
  """
  if first_step >= num_steps:
    return
  steps = grain.MapDataset.range(first_step, num_steps).map(reader)
  batches = steps.to_iter_dataset(
    grain.ReadOptions(
      num_threads=options.num_threads,
      prefetch_buffer_size=max(options.prefetch_batches, options.num_threads),
    )
  )
  if options.num_workers:
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=options.num_workers,
        per_worker_buffer_size=options.prefetch_batches,
      )
    )
  iterator = iter(batches)
  try:
    for batch in iterator:
      if isinstance(batch, InputError):
        raise batch
      yield batch
  finally:
    iterator.close()


class DeviceLoader:
  """Iterates over global arrays, sharded as the step wants them.

  Transfers are asynchronous: while the device works on one batch, the loop is
  already here for the next.

  Attributes:
    wait_seconds: time spent waiting for batches of the host so far.
  """

  def __init__(
    self,
    batches: Generator[HostBatch, None, None],
    sharding: jax.sharding.Sharding,
  ):
    self._batches = batches
    self._sharding = sharding
    self._first: HostBatch | None = None
    self.wait_seconds = 0.0

  def start(self) -> None:
    """Reads the first batch, and ahead from there.

    Raises:
      InputError: a record of it is broken.
    """
    self._first = next(self._batches)

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    return self

  def __next__(self) -> dict[str, jax.Array]:
    start = time.monotonic()
    try:
      batch = self._first or next(self._batches)
    finally:
      self.wait_seconds += time.monotonic() - start
    self._first = None
    return {
      name: jax.make_array_from_process_local_data(self._sharding, rows)
      for name, rows in batch.items()
    }

  def close(self) -> None:
    """Stops reading ahead."""
    self._batches.close()
