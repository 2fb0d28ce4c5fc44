"""Resampling with antialias, as torchvision and Pillow do it.

A filter is as wide as the step from one new pixel to the next, so that
shrinking averages over all old pixels. The fixed-point arithmetic is that of
Pillow's; the code is the Rust crate fast_image_resize (`cykooz-resizer`), which
releases the GIL.
"""

import cv2
import cykooz_resizer as resizer
import numpy as np

from resnet.errors import InputError

# Of image rows [H, W, C] by C.
_PIXEL_TYPES = {1: resizer.PixelType.U8, 3: resizer.PixelType.U8x3}
_FILTERS = {
  'bilinear': resizer.FilterType.bilinear,
  'bicubic': resizer.FilterType.catmull_rom,  # a = -0.5, as in Pillow.
  'lanczos': resizer.FilterType.lanczos3,
}
# What a config may choose.
INTERPOLATIONS = ('bilinear', 'bicubic')


def check_interpolation(field: str, value: str) -> None:
  """Raises an InputError that names the field, for an unknown `value`."""
  if value not in INTERPOLATIONS:
    raise InputError(
      f'data.{field}={value!r} is none of {", ".join(INTERPOLATIONS)}.'
    )


def resize(
  image: np.ndarray,
  height: int,
  width: int,
  interpolation: str = 'bilinear',
) -> np.ndarray:
  """Resizes uint8 [H, W, C], C = 1 or 3, to uint8 [height, width, C].

  Args:
    image: need not be contiguous.
    height: of the result, pixels.
    width: likewise.
    interpolation: 'bilinear', 'bicubic' or 'lanczos'; all with antialias.
  """
  old_height, old_width, channels = image.shape
  if (old_height, old_width) == (height, width):
    return image
  shrinks = height < old_height or width < old_width
  if interpolation == 'bilinear' and not shrinks:
    # There antialias does nothing, and OpenCV has the same numbers sooner.
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image.reshape(height, width, channels)
  pixel_type = _PIXEL_TYPES[channels]
  source = resizer.ImageData(
    old_width, old_height, pixel_type, image.tobytes()
  )
  result = resizer.ImageData(width, height, pixel_type)
  options = resizer.ResizeOptions(
    resize_alg=resizer.ResizeAlg.convolution(_FILTERS[interpolation])
  )
  # A resizer has a buffer of its own: threads cannot share one.
  resizer.Resizer().resize(source, result, options)
  pixels = np.frombuffer(result.get_buffer(), np.uint8)
  return pixels.reshape(height, width, channels)
