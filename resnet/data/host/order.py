"""The order of records in the endless stream of training examples."""

import dataclasses
import functools

from grain.experimental import index_shuffle


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOrder:
  """A sequence of epochs, each shuffled anew.

  With `repeats` r > 1 (repeated augmentation: Hoffer et al. 2020, "Augment your
  batch"; Berman et al. 2019, "MultiGrain") each image comes r times, each time
  augmented anew. The length of an epoch does not change: it ends after the
  first 1/r of its shuffled images. A batch holds all first
  copies, then all second ones, and so on, as torchvision's and timm's samplers
  distribute copies over processes. So batch statistics over up to batch_size /
  r neighbouring rows see no image twice. (This does not hold with
  accumulation_steps, because a micro-batch takes strided rows.)

  Attributes:
    length: number of records, and of examples per epoch.
    seed: seed of the shuffles.
    batch_size: global batch size, images.
    repeats: r, the number of copies.
  """

  length: int
  seed: int
  batch_size: int
  repeats: int = 1

  @functools.cached_property
  def _places(self) -> list[int]:
    """For each row, its place in a batch whose copies lie side by side."""
    return sorted(range(self.batch_size), key=lambda i: i % self.repeats)

  def __call__(self, position: int) -> int:
    """Returns the index of the record at a position of the stream."""
    batch, row = divmod(position, self.batch_size)
    place = batch * self.batch_size + self._places[row]
    epoch, place = divmod(place, self.length)
    # Grain's MapDataset.shuffle gives this order too, with twice the overhead.
    return index_shuffle(
      place // self.repeats,
      max_index=self.length - 1,
      seed=(self.seed + epoch) % 2**32,
      rounds=4,
    )
