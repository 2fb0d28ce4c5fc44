"""An image in several sizes, for multi-scale testing."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from resnet.data.transforms import Box, Image, resize_and_center_crop

# He et al. 2016, section 3.4, of networks that are trained on 224 pixels.
_PAPER_SIDES, _PAPER_SIZE = (224, 256, 384, 480, 640), 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalesTransform:
  """Image of any size -> its central square in each size, [N, C].

  The squares lie one after the other, row by row: N = sum(side * side). So an
  image is read and decoded once, and a batch is still one array.

  Attributes:
    sides: pixels; the shorter side of the image is resized to each.
    interpolation: 'bilinear' or 'bicubic', with antialias.
  """

  sides: tuple[int, ...]
  interpolation: str = 'bilinear'

  num_draws = 0

  def box(self, height: int, width: int, draws: Sequence[float]) -> Box:
    """Returns the whole image."""
    del draws
    return Box(0, 0, height, width)

  def __call__(self, image: Image, box: Box, draws: Sequence[float]) -> Image:
    """Returns [N, C] of a whole image."""
    del draws
    image = box.of(image)
    squares = [
      resize_and_center_crop(image, side, side, self.interpolation)
      for side in self.sides
    ]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in squares])


def paper_sides(size: int) -> tuple[int, ...]:
  """Returns the sides of the paper, in proportion to a network's `size`."""
  return tuple(round(side * size / _PAPER_SIZE) for side in _PAPER_SIDES)
