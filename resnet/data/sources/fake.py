"""The set `fake`: synthetic images, generated when they are read."""

import dataclasses
from typing import Any

import numpy as np

from resnet.data.sources.base import Source
from resnet.errors import InputError

# Number of images in each split.
LENGTHS = {'train': 512, 'test': 100}
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class FakeRecords:
  """Noisy copies of one random 4x4 pattern per class, which can be learned.

  Attributes:
    length: number of records.
    stream: seed of the noise, different for each split.
    image_size: side of the images, pixels.
  """

  length: int
  stream: int
  image_size: int

  def __len__(self) -> int:
    return self.length

  def __getitem__(self, index: int, /) -> dict[str, Any]:
    label = index % NUM_CLASSES
    pattern = np.random.default_rng([0, label]).integers(64, 192, (4, 4, 3))
    size = self.image_size
    coarse = np.arange(size) * 4 // size
    noise = np.random.default_rng([1, self.stream, index])
    image = pattern[coarse][:, coarse]
    image += noise.integers(-63, 64, image.shape)
    return {'image': image.astype(np.uint8), 'label': label}


def open_split(split: str, *, image_size: int | None, **_: Any) -> Source:
  """Opens 'train' or 'test'; the side of images is 32 pixels by default."""
  if split not in LENGTHS:
    raise InputError(
      f"'fake' has no split {split!r}. There are: {', '.join(LENGTHS)}"
    )
  size = image_size or 32
  records = FakeRecords(LENGTHS[split], list(LENGTHS).index(split), size)
  return Source(
    name='fake',
    split=split,
    num_classes=NUM_CLASSES,
    channels=3,
    records=records,
    image_shape=(size, size, 3),
  )
