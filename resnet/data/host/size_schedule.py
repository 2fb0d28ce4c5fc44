"""The side of training images as a function of the step.

Progressive resizing: small images first, for speed, larger ones at the end
(Howard 2018, fast.ai's DAWNBench entry; Tan and Le 2021, "EfficientNetV2",
section 4).
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from resnet.errors import InputError

# (epoch, side in pixels) of each side, from that epoch on.
Pairs = tuple[tuple[float, int], ...]

_FIELD = 'data.size_schedule'


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sides, each from a batch on; a pure function of the step.

  Attributes:
    starts: (number of its first batch, side in pixels) of each; the first
      begins with batch 0, and both rise.
  """

  starts: tuple[tuple[int, int], ...]

  def at(self, step: int) -> int:
    """Returns the side of the images of batch `step`, pixels."""
    return next(size for first, size in reversed(self.starts) if first <= step)


def check_schedule(given: Any, *, image_size: int) -> Pairs:
  """Returns the pairs; of () one, of `image_size` from the beginning.

  Args:
    given: a command line may bring anything.
    image_size: the side at the end, pixels.

  Raises:
    InputError: they are not pairs of numbers, do not rise from epoch 0, or
      end with another side.
  """
  pairs = given if isinstance(given, tuple | list) else (given,)
  if not pairs:
    return ((0.0, image_size),)
  if not all(map(_is_pair, pairs)):
    example = ((0.0, max(1, image_size // 2)), (10.0, image_size))
    raise InputError(
      f'{_FIELD}={given!r} is not made of pairs of an epoch and a size, a whole'
      f' number of pixels: type --config.{_FIELD}="{example}"'
    )
  epochs, sizes = zip(*pairs, strict=True)
  if epochs[0] != 0:
    raise InputError(
      f'{_FIELD}={given!r} begins at epoch {epochs[0]}: the first pair is that'
      f' of epoch 0, ({0.0}, {sizes[0]}).'
    )
  if any(sorted(set(each)) != list(each) for each in (epochs, sizes)):
    raise InputError(
      f'{_FIELD}={given!r}: both epochs and sizes must rise from pair to pair.'
    )
  if sizes[0] < 1:
    raise InputError(f'{_FIELD}={given!r}: a size is at least 1 pixel.')
  if sizes[-1] != image_size:
    raise InputError(
      f'{_FIELD}={given!r} ends with {sizes[-1]} pixels, and data.image_size'
      f'={image_size} is the size at the end: --config.data.image_size='
      f'{sizes[-1]}'
    )
  return tuple(zip(map(float, epochs), sizes, strict=True))


def _is_pair(pair: Any) -> bool:
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    return False
  epoch, size = pair
  return (
    isinstance(epoch, int | float)
    and isinstance(size, int)
    and not isinstance(epoch, bool)
    and not isinstance(size, bool)
    and math.isfinite(epoch)
  )


def create_sizes(
  pairs: Pairs, *, steps: Callable[[float], int], num_steps: int
) -> Sizes:
  """Returns the sides by step.

  Args:
    pairs: from `check_schedule`.
    steps: from epochs to whole steps.
    num_steps: of the run.

  Raises:
    InputError: a side would have no step.
  """
  starts = tuple((steps(epoch), size) for epoch, size in pairs)
  ends = (*(first for first, _ in starts[1:]), num_steps)
  for (epoch, size), (first, _), end in zip(pairs, starts, ends, strict=True):
    if first >= end:
      raise InputError(
        f'{_FIELD}: the {size} pixels of epoch {epoch} would begin after step'
        f' {first}, and end after step {end}'
        f'{", the last of the run" if end == num_steps else ""}: take an'
        ' earlier epoch.'
      )
  return Sizes(starts)
