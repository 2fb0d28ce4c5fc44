"""Which record stands where in the endless stream of training examples."""

import dataclasses
import functools
from typing import cast

import grain.python as grain


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOrder:
  """A sequence of epochs, each with its own order.

  With `repeats` r of more than 1 (repeated augmentation: Hoffer et al. 2020,
  "Augment your batch"; Berman et al. 2019, "MultiGrain") each image of an
  order comes r times, one copy after the other, each to be augmented anew. An
  epoch is as long as without: it ends after the first 1/r of the order's
  images, and the next one takes another order. A batch has its first copies
  first, then the second ones, and so on, as torchvision's and timm's samplers
  deal the copies out to processes: so groups of batch statistics of up to
  batch_size / r images see no image twice (but for accumulation_steps, whose
  parts take rows that lie apart).

  Attributes:
    length: number of records, and of the examples of an epoch.
    seed: of the orders.
    batch_size: global, images.
    repeats: r.
  """

  length: int
  seed: int
  batch_size: int
  repeats: int = 1

  @functools.cached_property
  def _shuffled(self) -> grain.MapDataset:
    records = grain.MapDataset.range(self.length)
    return records.shuffle(seed=self.seed).repeat()

  @functools.cached_property
  def _places(self) -> list[int]:
    """The place in the batch of each row, where copies are side by side."""
    parts = (
      range(i, self.batch_size, self.repeats) for i in range(self.repeats)
    )
    return [place for part in parts for place in part]

  def __call__(self, position: int) -> int:
    """Returns the record at a position, of which a batch has batch_size."""
    batch, row = divmod(position, self.batch_size)
    place = batch * self.batch_size + self._places[row]
    epoch, place = divmod(place, self.length)
    chosen = epoch * self.length + place // self.repeats
    return cast(int, self._shuffled[chosen])
