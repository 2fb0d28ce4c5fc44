"""Readers of small batches, and reading ahead with few options."""

from resnet.data.host import loader
from resnet.data.host.transforms import EvalTransform, TrainTransform
from resnet.data.host.warnings import DataWarnings

KEEP = EvalTransform(size=2, resize_size=2)
AUGMENT = TrainTransform(
  size=8,
  crop='random_resized',
  area=(0.08, 1.0),
  aspect=(3 / 4, 4 / 3),
  padding=0,
  flip=True,
)


def make_reader(
  source, batch_size, seed, *, transform=KEEP, rows=None, **fields
):
  """Returns a reader of all rows, or of (the first, how many)."""
  start, count = rows or (0, batch_size)
  return loader.BatchReader(
    source=source,
    transform=transform,
    batch_size=batch_size,
    seed=seed,
    row_start=start,
    row_count=count,
    **fields,
  )


def read_ahead(
  reader, first_step, num_steps, *, workers=0, threads=2, prefetch=2
):
  """Yields batches first_step .. num_steps - 1."""
  options = loader.LoaderOptions(
    num_workers=workers,
    num_threads=threads,
    prefetch_batches=prefetch,
    max_worker_restarts=0,
  )
  return loader.read_ahead(
    reader,
    options,
    first_step=first_step,
    num_steps=num_steps,
    warnings=DataWarnings(),
  )
