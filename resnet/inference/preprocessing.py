"""From the bytes of an image to the pixels that a network sees."""

import dataclasses
import functools
import math

import cv2
import jax
import numpy as np
import PIL.Image

from resnet.data.images import MAX_PIXELS, decode_image
from resnet.data.transforms import resize
from resnet.errors import InputError
from resnet.models.weights import Preprocessing
from resnet.training import step

# How many crops of an image are looked at, by name.
VIEWS = {'center': 1, 'flip': 2, 'ten_crop': 10}

# Pillow's filters average over what they shrink, as those of torchvision and
# timm do. 'bilinear' is that of training here: OpenCV's, see `data.transforms`.
_PILLOW = {
  'bicubic': PIL.Image.Resampling.BICUBIC,
  'lanczos': PIL.Image.Resampling.LANCZOS,
  'nearest': PIL.Image.Resampling.NEAREST,
}
INTERPOLATIONS = ('bilinear', *_PILLOW)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
  """PNG or JPEG bytes -> uint8 [views, size, size, C].

  Attributes:
    preprocessing: as recorded with the weights.
    views: 'center': the central square; 'flip': it and its mirror image;
      'ten_crop': the four corners, the centre, and their mirror images
      (Krizhevsky et al. 2012, section 4.1).
    max_pixels: an image that claims more is refused before it is decoded.
  """

  preprocessing: Preprocessing
  views: str = 'center'
  max_pixels: int = MAX_PIXELS

  def __post_init__(self):
    interpolation = self.preprocessing.interpolation
    if interpolation not in INTERPOLATIONS:
      raise InputError(
        f'The weights were made with {interpolation!r} interpolation, which is'
        f' none of {", ".join(INTERPOLATIONS)}.'
      )
    if self.views not in VIEWS:
      raise InputError(f'{self.views!r} is none of {", ".join(VIEWS)}.')

  @property
  def channels(self) -> int:
    """Returns 1 for grey, 3 for RGB."""
    return len(self.preprocessing.mean)

  @property
  def num_views(self) -> int:
    """Returns the number of crops of an image."""
    return VIEWS[self.views]

  @functools.cached_property
  def resize_size(self) -> int:
    """Returns the length that the shorter side is resized to, pixels."""
    # timm rounds down; the little more is for 8 / (8 / 9).
    size, share = self.preprocessing.image_size, self.preprocessing.crop_share
    return max(size, math.floor(size / share + 1e-6))

  def __call__(self, data: bytes) -> np.ndarray:
    """Decodes, resizes and crops.

    Raises:
      ValueError: the bytes are no image, or of too many pixels.
    """
    image = decode_image(data, self.channels, max_pixels=self.max_pixels)
    image = self._resize(image)
    size = self.preprocessing.image_size
    height, width = image.shape[:2]
    places = [((height - size) // 2, (width - size) // 2)]
    if self.views == 'ten_crop':
      places += [
        (top, left) for top in (0, height - size) for left in (0, width - size)
      ]
    crops = [image[y : y + size, x : x + size] for y, x in places]
    if self.views != 'center':
      crops += [crop[:, ::-1] for crop in crops]
    return np.stack(crops)

  def _resize(self, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    shorter = min(height, width)
    sides = (
      round(height * self.resize_size / shorter),
      round(width * self.resize_size / shorter),
    )
    if max(sides) > self.max_pixels // self.resize_size:
      raise ValueError(f'{width} x {height} pixels are too long and too narrow')
    interpolation = self.preprocessing.interpolation
    if interpolation == 'bilinear' or image.shape[:2] == sides:
      return resize(image, *sides)
    grey = image[..., 0] if image.shape[2] == 1 else image
    resized = PIL.Image.fromarray(grey).resize(
      sides[::-1], _PILLOW[interpolation]
    )
    return np.asarray(resized).reshape(*sides, -1)


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
  """uint8 [B, H, W, C] -> (images - mean) / std, float32, as in training."""
  return step.normalize(
    images,
    [255 * value for value in preprocessing.mean],
    [255 * value for value in preprocessing.std],
  )


def overlay(image: np.ndarray, heat: np.ndarray) -> bytes:
  """Lays a map over an image.

  Args:
    image: uint8 [S, S, C], as the network sees it.
    heat: float32 [h, w]; what is below zero is shown as zero.

  Returns:
    The bytes of a PNG file, at least 224 pixels wide: half the image, half the
    map in colours from dark blue (0) to dark red (its largest number).
  """
  side = len(image) * math.ceil(224 / len(image))
  size = (side, side)
  heat = np.maximum(heat, 0)
  heat = heat / max(float(heat.max()), np.finfo('f4').tiny)
  smooth = cv2.resize(heat.astype(np.float32), size)
  colors = cv2.applyColorMap(
    np.round(255 * smooth).astype(np.uint8), cv2.COLORMAP_TURBO
  )
  below = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
  if image.shape[2] == 1:
    below = cv2.cvtColor(below, cv2.COLOR_GRAY2BGR)
  else:
    below = cv2.cvtColor(below, cv2.COLOR_RGB2BGR)
  blend = cv2.addWeighted(below, 0.5, colors, 0.5, 0)
  return cv2.imencode('.png', blend)[1].tobytes()
