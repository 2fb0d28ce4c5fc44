"""Progressive resizing: the side of training images as a function of the step.

Training starts with small images, for speed, and ends with larger ones (Howard
2018, fast.ai's DAWNBench entry; Tan and Le 2021, "EfficientNetV2", section 4).
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from resnet.errors import InputError

# Pairs of a first epoch and the side of images from there on, pixels.
Pairs = tuple[tuple[float, int], ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sides of images by step.

  Attributes:
    starts: pairs of a first step and the side from there on, pixels; both rise.
  """

  starts: tuple[tuple[int, int], ...]

  def at(self, step: int) -> int:
    """Returns the side of the images of step `step`, pixels."""
    return next(size for first, size in reversed(self.starts) if first <= step)


def check_schedule(given: Any, *, image_size: int) -> Pairs:
  """Checks `data.size_schedule`, where () means one size; returns its pairs.

  The command line may set the field to anything. The last side must be
  `image_size`, pixels.
  """
  if given in ((), []):
    return ((0.0, image_size),)
  try:
    epochs = [float(epoch) for epoch, _ in given]
    sizes = [size for _, size in given]
    is_rising = all(sorted(set(x)) == x for x in (epochs, sizes))
    if (
      is_rising
      and all(type(size) is int for size in sizes)
      and (epochs[0], sizes[-1]) == (0, image_size)
      and sizes[0] >= 1
      and all(map(math.isfinite, epochs))
    ):
      return tuple(zip(epochs, sizes, strict=True))
  except (TypeError, ValueError, IndexError, OverflowError):
    pass
  example = ((0.0, max(1, image_size // 2)), (10.0, image_size))
  raise InputError(
    f'data.size_schedule={given!r} is not made of pairs (epoch, whole number of'
    f' pixels), both rising: epochs from epoch 0, sizes up to the {image_size}'
    f' pixels of data.image_size. Type --config.data.size_schedule="{example}"'
  )


def create_sizes(
  pairs: Pairs, *, steps: Callable[[float], int], num_steps: int
) -> Sizes:
  """Returns the sides by step; `steps` converts epochs to steps."""
  starts = tuple((steps(epoch), size) for epoch, size in pairs)
  ends = (*(first for first, _ in starts[1:]), num_steps)
  for (epoch, size), (first, _), end in zip(pairs, starts, ends, strict=True):
    if first >= end:
      raise InputError(
        f'data.size_schedule: no step would use size {size}: it begins at epoch'
        f' {epoch} (after step {first}) and ends after step {end} of a'
        f' {num_steps}-step run. Choose an earlier epoch.'
      )
  return Sizes(starts)
