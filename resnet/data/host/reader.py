"""Reads the batch of a step: its records, their order and their crops.

A batch is a function of (seed, step). A run that resumes at step n reads batch
n and gets the same bytes, whatever the number of threads, worker processes, JAX
processes or devices.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import cv2
import numpy as np

from resnet.data.host.decode import decode_record, image_size
from resnet.data.host.memory import keep_freed_memory
from resnet.data.host.order import TrainingOrder
from resnet.data.host.size_schedule import Sizes
from resnet.data.host.transforms import Box, Draws, Transform
from resnet.data.host.warnings import too_many_bad_images
from resnet.data.sources.base import Record, Source
from resnet.errors import InputError

# Arrays by name, and LEFT_OUT if images were left out.
HostBatch = dict[str, Any]
LEFT_OUT = 'left_out'
Example = tuple[np.ndarray, int]

# Separate keys, so that order and crops are independent.
_ORDER_STREAM, _AUGMENT_STREAM = 0, 1
# Uniform numbers per block of the Philox generator.
_PHILOX_BLOCK = 4


def _derive(seed: int, stream: int) -> int:
  """Returns 32 bits that differ for neighbouring seeds and streams.

  Grain seeds epoch e with seed + e. Without this hash, epoch 1 of seed 0 would
  have the order of epoch 0 of seed 1.
  """
  return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchReader:
  """Reads this process's rows of global batch number `step`.

  Global batch k holds the positions k * batch_size + (0 .. batch_size - 1) of
  the stream of examples. A training stream is an endless sequence of epochs
  (see `TrainingOrder`), so a batch may span two epochs and no example is
  dropped. An evaluation stream is the split in stored order; rows past its end
  are zeros with mask False.

  A broken image is an error, or is left out. In training the next record that
  can be decoded replaces it, whatever its label. In evaluation its row is zeros
  with mask False.

  Attributes:
    source: the records.
    transform: makes images of one shape from images of any shape.
    batch_size: global batch size, images.
    seed: seed of order and augmentation; None reads in stored order, once.
    row_start: first row of the global batch that belongs to this process.
    row_count: number of rows that belong to this process.
    max_bad_images: number of broken images that may be left out; None raises an
      error for the first one.
    repeats: copies of each training image; see `TrainingOrder`.
    sizes: side of the images by step; None for that of the transform.
  """

  source: Source
  transform: Transform
  batch_size: int
  seed: int | None
  row_start: int
  row_count: int
  max_bad_images: int | None = None
  repeats: int = 1
  sizes: Sizes | None = None

  @functools.cached_property
  def _order(self) -> TrainingOrder:
    assert self.seed is not None
    return TrainingOrder(
      length=len(self.source),
      seed=_derive(self.seed, _ORDER_STREAM),
      batch_size=self.batch_size,
      repeats=self.repeats,
    )

  @functools.cached_property
  def _by_size(self) -> dict[int, 'BatchReader']:
    assert self.sizes is not None
    return {
      size: dataclasses.replace(
        self, transform=self.transform.with_size(size), sizes=None
      )
      for _, size in self.sizes.starts
    }

  def __call__(self, step: int) -> HostBatch | InputError:
    """Returns 'image' uint8 [b, H, W, C], 'label' int32 [b], 'mask' bool [b].

    If images were left out, LEFT_OUT is a list of sentences that name them. An
    `InputError` is returned, not raised, because Grain would replace an
    exception of a worker process with its own.
    """
    if self.sizes is not None:
      return self._by_size[self.sizes.at(step)](step)
    cv2.setNumThreads(0)  # Grain has threads already.
    keep_freed_memory()
    left_out: list[str] = []
    try:
      plan = zip(*self.plan(step), strict=True)
      batch = self.stack([self._example(*place, left_out) for place in plan])
    except InputError as error:
      return error
    return {**batch, LEFT_OUT: left_out} if left_out else batch

  def plan(self, step: int) -> tuple[list[int], list[Draws]]:
    """Returns the indices of a batch's records, and the draws of each.

    No record is read.
    """
    return self.indices(step), self._draws(self._positions(step))

  def indices(self, step: int) -> list[int]:
    """Returns the indices of a batch's records; no record is read."""
    positions = self._positions(step)
    return list(positions) if self.seed is None else self._order(positions)

  def _positions(self, step: int) -> range:
    """Returns the positions of this process's rows in the stream."""
    start = step * self.batch_size + self.row_start
    stop = start + self.row_count
    if self.seed is None:
      stop = min(stop, len(self.source))
    return range(start, stop)

  def keys(self, step: int) -> list[str]:
    """Returns the names of the records of a training batch."""
    indices = self.indices(step)
    return list(map(self.source.key, indices, self.source.read(indices)))

  def _draws(self, positions: range) -> list[Draws]:
    """Draws uniform numbers that depend on seed and position only.

    Each position owns the same number of blocks of a counter-based generator,
    so one call serves a batch and the numbers do not depend on the batch size.
    """
    blocks = -(-self.transform.num_draws // _PHILOX_BLOCK)
    key = _derive(self.seed or 0, _AUGMENT_STREAM)
    bits = np.random.Philox(key=key, counter=positions.start * blocks)
    shape = len(positions), blocks * _PHILOX_BLOCK
    return np.random.Generator(bits).random(shape).tolist()

  def _example(
    self, index: int, draws: Draws, left_out: list[str]
  ) -> Example | None:
    """Returns image and label of the first good record from `index` on.

    In evaluation a broken record gives None instead of the next one.
    """
    for _ in range(len(self.source)):
      record = self.source.records[index]
      try:
        image, box = self.decode(draws, index, record)
        image = self.transform(image, box, draws)
      except ValueError as error:
        if not isinstance(error, InputError):
          key = self.source.key(index, record)
          error = InputError(f'The image of {key} cannot be used: {error}.')
        if self.max_bad_images is None:
          raise error from None
        left_out.append(str(error))
      else:
        return image, self.source.label(index, record)
      count = len(set(left_out))
      if count > self.max_bad_images:
        raise too_many_bad_images(count, self.max_bad_images, left_out[-1])
      if (replacement := self.replacement(index)) is None:
        return None
      index = replacement
    raise InputError(f'No image can be decoded. The last error: {left_out[-1]}')

  def replacement(self, index: int) -> int | None:
    """Returns the record that replaces a broken one; None in evaluation."""
    return None if self.seed is None else (index + 1) % len(self.source)

  def decode(
    self, draws: Draws, index: int, record: Record
  ) -> tuple[np.ndarray, Box]:
    """Returns the rows of an image that the transform needs, and its box."""
    # Reading the header is much cheaper than decoding the image.
    size = image_size(record['image'])
    height, width = size or decode_record(self.source, index, record).shape[:2]
    box = self.transform.box(height, width, draws)
    # If the box ends in the last row, decoding also detects damage after it.
    rows = box.bottom if box.bottom < height else None
    return decode_record(self.source, index, record, rows), box

  def stack(self, examples: Sequence[Example | None]) -> HostBatch:
    """Stacks examples into a batch; rows without an example are zeros."""
    shapes = (example[0].shape for example in examples if example)
    shape = next(shapes, None) or self.image_shape
    # np.empty gets huge pages and np.zeros does not; without them, page faults
    # take a tenth of the time per batch.
    images = np.empty((self.row_count, *shape), np.uint8)
    labels = np.zeros(self.row_count, np.int32)
    mask = np.zeros(self.row_count, bool)
    for row, example in enumerate(examples):
      if example:
        images[row], labels[row] = example
        mask[row] = True
    images[~mask] = 0
    return {'image': images, 'label': labels, 'mask': mask}

  @property
  def num_batch_bytes(self) -> int:
    """Bytes of the images in this process's rows, at the largest size."""
    largest = self._by_size[self.sizes.starts[-1][1]] if self.sizes else self
    return self.row_count * math.prod(largest.image_shape)

  @property
  def num_bytes(self) -> int:
    """Bytes of the images of all records, at the largest size."""
    return len(self.source) * (self.num_batch_bytes // self.row_count)

  @functools.cached_property
  def image_shape(self) -> tuple[int, ...]:
    """[H, W, C] of the first image that can be decoded, transformed."""
    (draws,) = self._draws(range(1))
    for index in range(len(self.source)):
      if example := self._example(index, draws, []):
        return example[0].shape
    raise InputError(
      f'No image of {self.source.name}/{self.source.split} can be decoded.'
    )
