"""Reads batches ahead of their use and puts them on the devices.

`BatchReader` decides what is in a batch; this module decides when it is read.
"""

from collections.abc import Generator, Iterator
import dataclasses
import time
from typing import Any

import grain.python as grain
import jax
import numpy as np

from resnet.data.augment.cache import ImageCache
from resnet.data.host import workers
from resnet.data.host.reader import LEFT_OUT, BatchReader, HostBatch
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError, RunError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
  """Sets the workers, threads and read-ahead, which do not change the batches.

  Attributes:
    num_workers: worker processes; 0 reads in threads of this process.
    num_threads: threads in each process; each thread makes whole batches.
    prefetch_batches: batches that are kept ready in each process; see
      `max_batches` for the memory.
    max_worker_restarts: number of times that dead workers are replaced.
  """

  num_workers: int
  num_threads: int
  prefetch_batches: int
  max_worker_restarts: int

  @property
  def max_batches(self) -> int:
    """The largest number of batches in host memory at a time.

    A batch has its place in the queue while a thread still works on it. Worker
    processes have a second queue, to this process. The training loop holds one
    more batch.
    """
    queue = max(self.prefetch_batches, self.num_threads)
    if self.num_workers:
      return self.num_workers * (queue + self.prefetch_batches) + 1
    return queue + 1


def read_ahead(
  reader: BatchReader,
  options: LoaderOptions,
  *,
  first_step: int,
  num_steps: int,
  warnings: DataWarnings,
) -> Generator[HostBatch, None, None]:
  """Yields batches first_step .. num_steps - 1, read ahead of their use.

  If a worker dies, all workers are replaced, and a warning is added to
  `warnings`.

  Raises:
    InputError: a record is broken.
    RunError: workers died more than `max_worker_restarts` times.
  """
  threads = grain.ReadOptions(
    num_threads=options.num_threads,
    prefetch_buffer_size=max(options.prefetch_batches, options.num_threads),
  )
  processes = grain.MultiprocessingOptions(
    num_workers=options.num_workers,
    per_worker_buffer_size=options.prefetch_batches,
  )
  if options.num_workers:
    workers.check_shared_memory(options.max_batches * reader.num_batch_bytes)
    workers.prepare()
  step, num_restarts = first_step, 0
  while step < num_steps:
    steps = grain.MapDataset.range(step, num_steps).map(reader)
    batches = steps.to_iter_dataset(threads)
    if options.num_workers:
      batches = batches.mp_prefetch(
        processes, worker_init_fn=workers.end_with_parent
      )
    iterator = iter(batches)
    try:
      for batch in iterator:
        if isinstance(batch, InputError):
          raise batch
        yield batch
        step += 1
    except RuntimeError as error:
      cause = workers.describe_exit(error)
      if cause is None:
        raise
      limit = options.max_worker_restarts
      if num_restarts == limit:
        after = f', after {limit} restarts' if limit else ''
        raise RunError(
          f'{cause}{after}. Use fewer workers (--config.data.num_workers='
          f'{options.num_workers - 1}) or less read-ahead'
          ' (--config.data.prefetch_batches=1), or allow more restarts:'
          f' --config.data.max_worker_restarts={limit + 10}'
        ) from None
      num_restarts += 1
      warnings.warn(
        f'{cause}. Reading continues from batch {step + 1} in new processes'
        f' (restart {num_restarts} of {limit}).'
      )
    finally:
      iterator.close()


@dataclasses.dataclass
class DeviceLoader:
  """Iterates over batches as global arrays, sharded for the step.

  Transfers are asynchronous: the next batch is transferred while the devices
  compute on the current one.

  Attributes:
    batches: this process's rows of each batch.
    sharding: sharding of the arrays.
    warnings: collects the images that are left out.
    cache: the images of the batches, if these are indices; or None.
    wait_seconds: time spent waiting for the host's batches so far.
    num_left_out: number of broken images left out of the batches so far.
  """

  batches: Generator[HostBatch, None, None]
  sharding: jax.sharding.Sharding
  warnings: DataWarnings
  cache: ImageCache | None = None
  wait_seconds: float = 0.0
  num_left_out: int = 0
  _first: HostBatch | None = None

  def start(self) -> None:
    """Reads the first batch, which also starts reading ahead."""
    self._first = next(self.batches)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return self

  def __next__(self) -> dict[str, Any]:
    """Starts the transfer of the next batch to the devices."""
    return self._put(self._read())

  def take(self, count: int) -> dict[str, Any]:
    """Starts the transfer of `count` batches, stacked in dim 1 if several."""
    if count == 1:
      return next(self)
    batches = [self._read() for _ in range(count)]
    return self._put(
      {x: np.stack([batch[x] for batch in batches], 1) for x in batches[0]}
    )

  def _read(self) -> HostBatch:
    start = time.monotonic()
    try:
      batch = self._first or next(self.batches)
    finally:
      self.wait_seconds += time.monotonic() - start
    self._first = None
    left_out = batch.pop(LEFT_OUT, [])
    self.num_left_out += len(left_out)
    self.warnings.report_bad_images(left_out)
    return batch

  def _put(self, batch: HostBatch) -> dict[str, Any]:
    arrays = {
      name: jax.make_array_from_process_local_data(self.sharding, rows)
      for name, rows in batch.items()
    }
    return arrays if self.cache is None else {**arrays, 'cache': self.cache}

  def close(self) -> None:
    """Stops reading ahead."""
    self.batches.close()
