"""Image transforms: pure functions of NumPy arrays, uint8 [H, W, C].

Randomness comes from `draws`, uniform numbers in [0, 1) that belong to the
example, so an augmented image is a function of its position in the data. A
transform first returns the box that it needs, so that the rows below that box
need not be decoded.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from resnet.data.host.decode import MAX_PIXELS
from resnet.data.host.resize import resize

Image = np.ndarray
Draws = Sequence[float]

_TRIES = 10
# The draws of `random_box`: area and aspect of each try, then top and left.
BOX_DRAWS = 2 * _TRIES + 2


class Box(NamedTuple):
  """A rectangle of pixels."""

  top: int
  left: int
  height: int
  width: int

  @property
  def bottom(self) -> int:
    return self.top + self.height

  def cut(self, image: Image) -> Image:
    """Returns a view of the pixels in the box."""
    return image[self.top : self.bottom, self.left : self.left + self.width]


class Transform:
  """Makes images of one shape. The base class returns them unchanged.

  Attributes:
    num_draws: number of uniform draws per image.
  """

  num_draws = 0

  def with_size(self, size: int) -> 'Transform':
    """Returns this transform for training images of another size."""
    del size
    return self

  def box(self, height: int, width: int, draws: Draws) -> Box:
    """Returns the part of an image [height, width] that is needed."""
    del draws
    return Box(0, 0, height, width)

  def __call__(self, image: Image, box: Box, draws: Draws) -> Image:
    """Transforms an image of at least `box.bottom` rows to uint8 [H, W, C]."""
    del box, draws
    return image


def resize_shorter_side(
  image: Image,
  size: int,
  interpolation: str = 'bilinear',
  *,
  max_pixels: int = MAX_PIXELS,
) -> Image:
  """Resizes the shorter side to `size` pixels, as torchvision does.

  The longer side is rounded down. A result of more than about `max_pixels`
  raises a ValueError.
  """
  height, width = image.shape[:2]
  shorter = min(height, width)
  sides = height * size // shorter, width * size // shorter
  if max(sides) > max_pixels // size:
    raise ValueError(
      f'{width} x {height} pixels are too long and narrow to be resized to a'
      f' shorter side of {size}'
    )
  return resize(image, *sides, interpolation)


def center_crop(image: Image, size: int) -> Image:
  """Crops the central square, rounding as torchvision's `CenterCrop` does."""
  top, left = (round((side - size) / 2) for side in image.shape[:2])
  return image[top : top + size, left : left + size]


def ten_crop(image: Image, size: int) -> np.ndarray:
  """Crops centre and corners, then those of the mirror image.

  Krizhevsky et al. 2012, section 4.1. The crops are those of torchvision's
  `TenCrop`, with the central crop first in each group of five.

  Returns:
    uint8 [10, size, size, C].
  """
  crops = []
  for view in (image, image[:, ::-1]):
    down, right = (side - size for side in view.shape[:2])
    crops.append(center_crop(view, size))
    crops += [
      view[top : top + size, left : left + size]
      for top in (0, down)
      for left in (0, right)
    ]
  return np.stack(crops)


def resize_and_center_crop(
  image: Image, resize_size: int, size: int, interpolation: str = 'bilinear'
) -> Image:
  """Resizes the shorter side to `resize_size` and crops the central square."""
  return center_crop(
    resize_shorter_side(image, resize_size, interpolation), size
  )


def random_box(
  height: int,
  width: int,
  draws: Draws,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """Returns a box of random area and random aspect.

  Szegedy et al. 2015, "Going deeper with convolutions", section 6. The
  distribution is that of torchvision's `RandomResizedCrop`: uniform area and
  log-uniform aspect (width / height). After ten tries that do not fit, the box
  is the largest central one of the nearest allowed aspect. The first BOX_DRAWS
  of `draws` are used.
  """
  low, high = math.log(aspect[0]), math.log(aspect[1])
  for i in range(0, 2 * _TRIES, 2):
    target = height * width * (area[0] + (area[1] - area[0]) * draws[i])
    ratio = math.exp(low + (high - low) * draws[i + 1])
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = int(draws[2 * _TRIES] * (height - h + 1))
      left = int(draws[2 * _TRIES + 1] * (width - w + 1))
      return Box(top, left, h, w)
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h = min(height, max(1, round(width / ratio)))
  w = min(width, max(1, round(height * ratio)))
  return Box((height - h) // 2, (width - w) // 2, h, w)


def pad_and_crop(image: Image, draws: Draws, *, padding: int) -> Image:
  """Pads each side with zeros and crops a random window of the old size.

  He et al. 2016, section 4.2, with padding 4. The first two draws are used.
  """
  height, width = image.shape[:2]
  p = padding
  padded = cv2.copyMakeBorder(image, p, p, p, p, cv2.BORDER_CONSTANT)
  top, left = (int(draw * (2 * padding + 1)) for draw in draws[:2])
  # OpenCV drops the channel axis of grey images.
  return padded[top : top + height, left : left + width].reshape(image.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform(Transform):
  """Randomly crops and flips an image of any size to [size, size, C].

  Attributes:
    size: side of the result, pixels.
    crop: 'random_resized', 'pad' (shift by up to `padding` pixels), or 'none'.
    area: smallest and largest area as a share of the image, for
      'random_resized'.
    aspect: smallest and largest width / height, for 'random_resized'.
    padding: pixels on each side, for 'pad'.
    flip: mirror half of the images.
    interpolation: 'bilinear' or 'bicubic', with antialiasing.
  """

  size: int
  crop: str
  area: tuple[float, float]
  aspect: tuple[float, float]
  padding: int
  flip: bool
  interpolation: str = 'bilinear'

  num_draws = 1 + BOX_DRAWS  # The flip comes first.

  def with_size(self, size: int) -> 'TrainTransform':
    return dataclasses.replace(self, size=size)

  def box(self, height: int, width: int, draws: Draws) -> Box:
    if self.crop != 'random_resized':
      return Box(0, 0, height, width)
    return random_box(
      height, width, draws[1:], area=self.area, aspect=self.aspect
    )

  def __call__(self, image: Image, box: Box, draws: Draws) -> Image:
    image = box.cut(image)
    if self.crop == 'random_resized':
      image = resize(image, self.size, self.size, self.interpolation)
    else:
      image = resize_and_center_crop(
        image, self.size, self.size, self.interpolation
      )
      if self.crop == 'pad':
        image = pad_and_crop(image, draws[1:], padding=self.padding)
    if self.flip and draws[0] < 0.5:
      image = cv2.flip(image, 1).reshape(image.shape)
    return image


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform(Transform):
  """Crops the centre of an image of any size, to [size, size, C].

  Attributes:
    size: side of the result, pixels.
    resize_size: shorter side after the resize, before the crop, pixels.
    interpolation: 'bilinear' or 'bicubic', with antialiasing.
  """

  size: int
  resize_size: int
  interpolation: str = 'bilinear'

  def __call__(self, image: Image, box: Box, draws: Draws) -> Image:
    del box, draws
    return resize_and_center_crop(
      image, self.resize_size, self.size, self.interpolation
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsTransform(Transform):
  """Packs the square views of an image into one array [N, C].

  N is the sum of side * side over the views. The image is decoded once, and a
  batch is still one array.

  Attributes:
    sides: side of each view, pixels.
    resize_size: for ten crops, the length to which the shorter side is resized,
      pixels; all `sides` must then be equal. With None, each view is the
      central square of the image, resized to the side of the view.
    interpolation: 'bilinear' or 'bicubic', with antialiasing.
  """

  sides: tuple[int, ...]
  resize_size: int | None = None
  interpolation: str = 'bilinear'

  def __call__(self, image: Image, box: Box, draws: Draws) -> Image:
    del box, draws
    if self.resize_size is not None:
      image = resize_shorter_side(image, self.resize_size, self.interpolation)
      squares = ten_crop(image, self.sides[0])
    else:
      squares = [
        resize_and_center_crop(image, side, side, self.interpolation)
        for side in self.sides
      ]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in squares])
