"""Converts the bytes of an image to the input of a network."""

import dataclasses
import math

import cv2
import jax
import numpy as np

from resnet.data.host import transforms
from resnet.data.host.decode import MAX_PIXELS, decode_image
from resnet.data.host.resize import FILTERS
from resnet.errors import InputError
from resnet.training import task
from resnet.weights.metadata import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
  """Converts PNG or JPEG bytes to uint8 [views, size, size, C].

  Attributes:
    preprocessing: preprocessing stored with the weights.
    views: 'center' for the central square; 'flip' for it and its mirror image;
      'ten_crop', see `data.host.transforms.ten_crop`.
    max_pixels: largest accepted number of pixels, before and after resizing.
  """

  preprocessing: Preprocessing
  views: str = 'center'
  max_pixels: int = MAX_PIXELS

  def __post_init__(self):
    if (name := self.preprocessing.interpolation) not in FILTERS:
      known = ', '.join(FILTERS)
      raise InputError(
        f'The interpolation {name!r} of the weights is not one of {known}.'
      )

  @property
  def num_views(self) -> int:
    """The number of crops per image."""
    return {'center': 1, 'flip': 2, 'ten_crop': 10}[self.views]

  def __call__(self, data: bytes) -> np.ndarray:
    """Converts an image; raises a ValueError if it is broken or too large."""
    recorded, limit = self.preprocessing, self.max_pixels
    image = transforms.resize_shorter_side(
      decode_image(data, len(recorded.mean), max_pixels=limit),
      recorded.resize_size,
      recorded.interpolation,
      max_pixels=limit,
    )
    size = recorded.image_size
    if self.views == 'ten_crop':
      return transforms.ten_crop(image, size)
    crop = transforms.center_crop(image, size)
    return np.stack([crop] if self.views == 'center' else [crop, crop[:, ::-1]])


def normalize(images: jax.Array, preprocessing: Preprocessing) -> jax.Array:
  """Normalises uint8 images [B, H, W, C] to float32, as in training."""
  return task.normalize(
    images,
    [255 * value for value in preprocessing.mean],
    [255 * value for value in preprocessing.std],
  )


def overlay(image: np.ndarray, heat: np.ndarray) -> bytes:
  """Blends an image with a class activation map.

  Args:
    image: input of the network, uint8 [S, S, C].
    heat: the map, float32 [h, w]; negative values are shown as zero.

  Returns:
    The bytes of a PNG file, at least 224 pixels wide: the mean of the image and
    the map, in colours from dark blue (0) to dark red (the largest value).
  """
  size = (len(image) * math.ceil(224 / len(image)),) * 2
  heat = np.maximum(heat, 0)
  heat = heat / max(float(heat.max()), np.finfo('f4').tiny)
  smooth = cv2.resize(heat.astype(np.float32), size)
  colors = cv2.applyColorMap(
    np.round(255 * smooth).astype(np.uint8), cv2.COLORMAP_TURBO
  )
  below = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
  code = cv2.COLOR_GRAY2BGR if image.shape[2] == 1 else cv2.COLOR_RGB2BGR
  blend = cv2.addWeighted(cv2.cvtColor(below, code), 0.5, colors, 0.5, 0)
  return cv2.imencode('.png', blend)[1].tobytes()
