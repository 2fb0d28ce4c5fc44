"""Batches for the step, read ahead of their use and put on the devices.

They come from `BatchReader`, which says what is in them: here is only when.
"""

from collections.abc import Generator, Iterator
import dataclasses
import time

import grain.python as grain
import jax

from resnet.data.host import workers
from resnet.data.host.reader import LEFT_OUT, BatchReader, HostBatch
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError, RunError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
  """How fast to read; the batches are the same for every choice.

  Attributes:
    num_workers: processes that read ahead; 0 reads in threads of this one.
    num_threads: threads in each process; a thread makes whole batches.
    prefetch_batches: batches that wait, ready, in each process; see
      `max_batches` for the memory.
    max_worker_restarts: times that dead workers are replaced.
  """

  num_workers: int
  num_threads: int
  prefetch_batches: int
  max_worker_restarts: int

  @property
  def max_batches(self) -> int:
    """The most batches that are held in memory, but for the device's.

    Each thread works on one that has a place in the queue; worker processes
    have a second queue, towards this one; and one is in the loop's hands.
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

  A worker that died is replaced, and `warnings` has a warning.

  Raises:
    InputError: from the iterator, for a record that is broken.
    RunError: from the iterator, for workers that die too often.
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
  step, num_deaths = first_step, 0
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
      death = workers.describe_exit(error)
      if death is None:
        raise
      most = options.max_worker_restarts
      if num_deaths == most:
        raise RunError(
          f'{death}{f", after {most} restarts" if most else ""}. Use fewer'
          f' (--config.data.num_workers={options.num_workers - 1}) or less'
          ' read-ahead (--config.data.prefetch_batches=1), or let them be'
          f' replaced: --config.data.max_worker_restarts={most + 10}'
        ) from None
      num_deaths += 1
      warnings.warn(
        f'{death}. Reading continues from batch {step + 1} in new processes'
        f' (restart {num_deaths} of {most}).'
      )
    finally:
      iterator.close()


class DeviceLoader:
  """Iterates over global arrays, sharded as the step wants them.

  Transfers are asynchronous: while the device works on one batch, the loop is
  already here for the next.

  Attributes:
    wait_seconds: time spent waiting for batches of the host so far.
    num_left_out: broken images that were met in the batches so far.
  """

  def __init__(
    self,
    batches: Generator[HostBatch, None, None],
    sharding: jax.sharding.Sharding,
    warnings: DataWarnings,
  ):
    self._batches = batches
    self._sharding = sharding
    self._warnings = warnings
    self.num_left_out = 0
    self._first: HostBatch | None = None
    self.wait_seconds = 0.0

  def start(self) -> None:
    """Reads the first batch, and ahead from there."""
    self._first = next(self._batches)

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    return self

  def __next__(self) -> dict[str, jax.Array]:
    """Puts the next batch on its way to the devices."""
    start = time.monotonic()
    try:
      batch = self._first or next(self._batches)
    finally:
      self.wait_seconds += time.monotonic() - start
    self._first = None
    left_out = batch.pop(LEFT_OUT, [])
    self.num_left_out += len(left_out)
    self._warnings.report_bad_images(left_out)
    return {
      name: jax.make_array_from_process_local_data(self._sharding, rows)
      for name, rows in batch.items()
    }

  def close(self) -> None:
    """Stops reading ahead."""
    self._batches.close()
