"""Image transforms: pure functions from NumPy to NumPy, uint8 [H, W, C].

Whatever is random takes a `np.random.Generator`, so an image is a function of
the generator's key. Resizing is OpenCV's: area averaging to shrink, bilinear
to enlarge.
"""

import dataclasses
import math

import cv2
import numpy as np

from resnet.errors import InputError

Image = np.ndarray


def resize(image: Image, height: int, width: int) -> Image:
  """Resizes to [height, width, C]."""
  if image.shape[:2] == (height, width):
    return image
  shrinks = height < image.shape[0] or width < image.shape[1]
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  resized = cv2.resize(image, (width, height), interpolation=interpolation)
  return resized.reshape(height, width, -1)  # OpenCV drops a single channel.


def resize_and_center_crop(image: Image, resize_size: int, size: int) -> Image:
  """Resizes the shorter side to `resize_size`, cuts the central square."""
  height, width = image.shape[:2]
  shorter = min(height, width)
  image = resize(
    image,
    round(height * resize_size / shorter),
    round(width * resize_size / shorter),
  )
  top, left = ((side - size) // 2 for side in image.shape[:2])
  return image[top : top + size, left : left + size]


def random_resized_crop(
  image: Image,
  rng: np.random.Generator,
  *,
  size: int,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Image:
  """Crops a random share of the area at a random aspect, resizes to a square.

  Szegedy et al. 2015, "Going deeper with convolutions", section 6; the
  distribution is torchvision's `RandomResizedCrop`: area uniform, aspect
  (width / height) log-uniform, ten tries, then the central crop of the
  nearest aspect that is allowed.
  """
  height, width = image.shape[:2]
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = rng.integers(0, height - h, endpoint=True)
      left = rng.integers(0, width - w, endpoint=True)
      return resize(image[top : top + h, left : left + w], size, size)
  ratio = min(max(width / height, aspect[0]), aspect[1])
  h = min(height, max(1, round(width / ratio)))
  w = min(width, max(1, round(height * ratio)))
  top, left = (height - h) // 2, (width - w) // 2
  return resize(image[top : top + h, left : left + w], size, size)


def pad_and_crop(
  image: Image, rng: np.random.Generator, *, padding: int
) -> Image:
  """Pads each side with zeros, cuts a random window of the old size.

  He et al. 2016, section 4.2, with padding 4.
  """
  height, width = image.shape[:2]
  padded = np.zeros(
    (height + 2 * padding, width + 2 * padding, image.shape[2]), image.dtype
  )
  padded[padding : padding + height, padding : padding + width] = image
  top, left = rng.integers(0, 2 * padding, 2, endpoint=True)
  return padded[top : top + height, left : left + width]


def random_flip(image: Image, rng: np.random.Generator) -> Image:
  """Mirrors left to right with probability one half."""
  return image[:, ::-1] if rng.random() < 0.5 else image


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
  """Image of any size -> augmented [size, size, C].

  Attributes:
    size: side of the result, pixels.
    crop: 'random_resized', 'pad' (shift by up to `padding` pixels), or 'none'.
    area: least and largest share of the image, for 'random_resized'.
    aspect: least and largest width / height, for 'random_resized'.
    padding: pixels on each side, for 'pad'.
    flip: mirror half of the images.
  """

  size: int
  crop: str
  area: tuple[float, float]
  aspect: tuple[float, float]
  padding: int
  flip: bool

  def __post_init__(self):
    crops = ('random_resized', 'pad', 'none')
    if self.crop not in crops:
      raise InputError(
        f'data.crop={self.crop!r} is none of {", ".join(crops)}.'
      )
    for field, low, high in (
      ('area', *self.area),
      ('aspect', *self.aspect),
    ):
      if not 0 < low <= high or (field == 'area' and high > 1):
        raise InputError(
          f'data.crop_{field}=({low}, {high}) is not a range of positive'
          f' numbers, least first{", up to 1" if field == "area" else ""}.'
        )
    if not 0 <= self.padding <= self.size:
      raise InputError(
        f'data.crop_padding={self.padding} is not in 0 .. {self.size}'
        ' (data.image_size).'
      )

  def __call__(self, image: Image, rng: np.random.Generator) -> Image:
    if self.crop == 'random_resized':
      image = random_resized_crop(
        image, rng, size=self.size, area=self.area, aspect=self.aspect
      )
    else:
      image = resize_and_center_crop(image, self.size, self.size)
      if self.crop == 'pad':
        image = pad_and_crop(image, rng, padding=self.padding)
    return random_flip(image, rng) if self.flip else image


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
  """Image of any size -> central [size, size, C]; nothing random.

  Attributes:
    size: side of the result, pixels.
    resize_size: the shorter side is resized to this before the crop, pixels.
  """

  size: int
  resize_size: int

  def __post_init__(self):
    if not self.size <= self.resize_size <= 8 * self.size:
      raise InputError(
        f'data.eval_resize={self.resize_size} is not in {self.size} ..'
        f' {8 * self.size} (1 to 8 times data.image_size).'
      )

  def __call__(self, image: Image, rng: np.random.Generator) -> Image:
    del rng
    return resize_and_center_crop(image, self.resize_size, self.size)
