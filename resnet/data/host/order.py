"""The order of records in the endless stream of training examples."""

import dataclasses
import functools
import itertools

from grain.experimental import index_shuffle
import numpy as np


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
  def _places(self) -> np.ndarray:
    """For each row, its place in a batch whose copies lie side by side."""
    return np.argsort(np.arange(self.batch_size) % self.repeats, kind='stable')

  def __call__(self, positions: range) -> list[int]:
    """Returns the indices of the records at positions of the stream."""
    batches, rows = np.divmod(
      np.arange(positions.start, positions.stop), self.batch_size
    )
    places = batches * self.batch_size + self._places[rows]
    epochs, places = np.divmod(places, self.length)
    # Grain's MapDataset.shuffle gives this order too, one call per position.
    # Positional arguments: with keywords, a call takes a quarter longer.
    return list(
      map(
        index_shuffle,
        (places // self.repeats).tolist(),
        itertools.repeat(self.length - 1),  # The largest index.
        ((self.seed + epochs) % 2**32).tolist(),
        itertools.repeat(4),  # Rounds.
      )
    )
