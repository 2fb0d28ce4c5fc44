"""Packs several square views of an image into one array."""

import dataclasses

import numpy as np

from resnet.data.host.transforms import (
  Box,
  Draws,
  Image,
  Transform,
  resize_and_center_crop,
  resize_shorter_side,
  ten_crop,
)

# He et al. 2016, section 3.4, for networks trained on 224 pixels.
_PAPER_SIDES, _PAPER_SIZE = (224, 256, 384, 480, 640), 224


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsTransform(Transform):
  """Packs the square views of an image into one array [N, C].

  N is the sum of side * side over the views. The image is decoded once, and a
  batch is still one array.

  Attributes:
    sides: side of each view, pixels.
    resize_size: take ten crops of the image with its shorter side resized to
      this, pixels; all sides are equal. None takes the central square of the
      image resized to each side.
    interpolation: 'bilinear' or 'bicubic', with antialiasing.
  """

  sides: tuple[int, ...]
  resize_size: int | None = None
  interpolation: str = 'bilinear'

  def __call__(self, image: Image, box: Box, draws: Draws) -> Image:
    del draws
    image = box.cut(image)
    if self.resize_size is not None:
      image = resize_shorter_side(image, self.resize_size, self.interpolation)
      squares = ten_crop(image, self.sides[0])
    else:
      squares = [
        resize_and_center_crop(image, side, side, self.interpolation)
        for side in self.sides
      ]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in squares])


def paper_sides(size: int) -> tuple[int, ...]:
  """Returns the five sides of the paper, scaled to a network's `size`."""
  return tuple(round(side * size / _PAPER_SIZE) for side in _PAPER_SIDES)
