"""How an image is stored: as its file, shrunk, or as pixels."""

import dataclasses

import cv2
import numpy as np
import simplejpeg

from resnet.data.host.decode import decode_image, is_cmyk
from resnet.data.host.resize import resize
from resnet.data.host.transforms import resize_and_center_crop
from resnet.errors import InputError

# JPEG quality when a file is re-encoded only to change its colour space.
_FAITHFUL_QUALITY = 98


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """How images are stored.

  Attributes:
    channels: 1 or 3.
    resize: larger images are shrunk to this shorter side, pixels (Lanczos, with
      antialias). None: none is.
    quality: of JPEG, 1 to 100, for images that are shrunk.
    raw: store the pixels; where `resize` is given, of the central square.
  """

  channels: int
  resize: int | None
  quality: int
  raw: bool

  def __post_init__(self):
    if self.resize is not None and not 8 <= self.resize <= 4096:
      raise InputError(f'--resize={self.resize} is not in 8 .. 4096 pixels.')
    if not 1 <= self.quality <= 100:
      raise InputError(f'--quality={self.quality} is not in 1 .. 100.')

  def encode(self, image: bytes | np.ndarray) -> bytes | np.ndarray:
    """Returns a file, or uint8 [H, W, channels] for `raw`.

    Every image is decoded, to find those that are broken (a ValueError). A file
    stays as it is, but for CMYK, which plain TFDS cannot read.
    """
    pixels = decode_image(image, self.channels)
    shorter = min(pixels.shape[:2])
    if self.raw and self.resize is not None:
      return resize_and_center_crop(pixels, self.resize, self.resize, 'lanczos')
    if self.raw:
      return pixels
    if self.resize is not None and shorter > self.resize:
      height, width = (
        round(side * self.resize / shorter) for side in pixels.shape[:2]
      )
      return _jpeg(resize(pixels, height, width, 'lanczos'), self.quality)
    if isinstance(image, np.ndarray):
      return cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
    return _jpeg(pixels, _FAITHFUL_QUALITY) if is_cmyk(image) else image


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(pixels),
    quality=quality,
    colorspace='GRAY' if pixels.shape[-1] == 1 else 'RGB',
    colorsubsampling='420',
  )
