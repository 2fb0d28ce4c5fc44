"""Images that are made up on the fly: the set `fake`."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from resnet.data.sources.base import Source
from resnet.errors import InputError

# Images of each split.
LENGTHS = {'train': 512, 'test': 100}


@dataclasses.dataclass(frozen=True)
class FakeRecords:
  """Noisy copies of one random 4x4 pattern a class; learnable, not real."""

  length: int
  stream: int
  image_size: int
  num_classes: int = 10

  def __len__(self) -> int:
    return self.length

  def __getitems__(self, keys: Sequence[int], /) -> Sequence[dict[str, Any]]:
    return [self._record(key) for key in keys]

  def _record(self, index: int) -> dict[str, Any]:
    label = index % self.num_classes
    pattern = np.random.default_rng([0, label]).integers(64, 192, (4, 4, 3))
    size = self.image_size
    coarse = np.arange(size) * 4 // size
    noise = np.random.default_rng([1, self.stream, index])
    image = pattern[coarse][:, coarse] + noise.integers(
      -63, 64, (size, size, 3)
    )
    return {'image': image.astype(np.uint8), 'label': label}


def open_split(split: str, *, image_size: int | None, **_: Any) -> Source:
  """Returns 'train' or 'test', of images of this side, 32 pixels for None."""
  if split not in LENGTHS:
    raise InputError(
      f"'fake' has no split {split!r}. There are: {', '.join(LENGTHS)}"
    )
  size = image_size or 32
  records = FakeRecords(LENGTHS[split], list(LENGTHS).index(split), size)
  return Source(
    name='fake',
    split=split,
    num_classes=records.num_classes,
    channels=3,
    records=records,
    image_shape=(size, size, 3),
  )
