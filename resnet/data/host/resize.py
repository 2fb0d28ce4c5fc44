"""Resizes with antialiasing, as torchvision and Pillow do.

The filter widens with the shrink factor, so that all old pixels are averaged.
Bilinear shrinking, the most frequent case, uses the Rust
crate fast_image_resize (`cykooz-resizer`), which has the same arithmetic as
Pillow and is faster. (Its bicubic filter differs from Pillow's by up to four
grey levels.) Both libraries release the GIL.
"""

import cv2
import cykooz_resizer as resizer
import numpy as np
from PIL import Image

# Pixel types by number of channels.
_PIXEL_TYPES = {1: resizer.PixelType.U8, 3: resizer.PixelType.U8x3}
_PILLOW_FILTERS = {
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
  'nearest': Image.Resampling.NEAREST,
}
# The interpolations of `resize`; imported weights may name any of them.
FILTERS = ('bilinear', *_PILLOW_FILTERS)


def resize(
  image: np.ndarray, height: int, width: int, interpolation: str = 'bilinear'
) -> np.ndarray:
  """Resizes uint8 [H, W, C], C = 1 or 3, to uint8 [height, width, C].

  The image need not be contiguous. The interpolation is one of `FILTERS`; all
  but 'nearest' use antialiasing.
  """
  if image.shape[:2] == (height, width):
    return image
  if interpolation == 'bilinear':
    pixels = _bilinear(image, height, width)
  else:
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    pixels = np.asarray(
      picture.resize((width, height), _PILLOW_FILTERS[interpolation])
    )
  return pixels.reshape(height, width, image.shape[2])


def _bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
  old_height, old_width, channels = image.shape
  if height >= old_height and width >= old_width:
    # Antialiasing has no effect here, and OpenCV is faster.
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  pixel_type = _PIXEL_TYPES[channels]
  source = resizer.ImageData(old_width, old_height, pixel_type, image.tobytes())
  result = resizer.ImageData(width, height, pixel_type)
  options = resizer.ResizeOptions(
    resize_alg=resizer.ResizeAlg.convolution(resizer.FilterType.bilinear)
  )
  # A resizer has its own buffer, so threads cannot share one.
  resizer.Resizer().resize(source, result, options)
  return np.frombuffer(result.get_buffer(), np.uint8)
