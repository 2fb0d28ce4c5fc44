"""Image files to pixels: PNG and JPEG bytes to uint8 [H, W, C]."""

import contextlib
import zlib

import cv2
import numpy as np
import simplejpeg

# Over twice the largest image of ImageNet; more is taken for an attack or a
# damaged header, and no memory is asked for.
MAX_PIXELS = 2**27

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_SIGNATURE = b'\xff\xd8'
# SOF0 .. SOF15 without the tables DHT, JPG and DAC among them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# TEM, RST0 .. RST7 and SOI stand alone: no length follows.
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def decode_image(
  data: bytes | np.ndarray, channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
  """Decodes PNG or JPEG bytes; an array passes as it is.

  What the bytes are is told by the bytes, not by a file's name. The pixels
  stay as they are stored: EXIF orientation is ignored, as it is by Pillow's
  `open` and `tf.io.decode_image`, with which the published networks were
  trained. CMYK is taken as inverted, as Adobe writes it and Pillow reads it;
  16 bits keep their upper eight; alpha is dropped.

  Args:
    data: the bytes of a file, or uint8 [H, W, channels].
    channels: 1 for grey, 3 for RGB, whatever the file holds.
    max_pixels: more of them are refused.

  Returns:
    uint8 [H, W, channels].

  Raises:
    ValueError: the bytes are not an image that can be decoded to its end, or
      the header claims more than `max_pixels`.
  """
  if isinstance(data, np.ndarray):
    return data
  if data.startswith(_JPEG_SIGNATURE):
    _check_size(*_jpeg_size(data), max_pixels)
    return _decode_jpeg(data, channels)
  if data.startswith(_PNG_SIGNATURE):
    _check_size(*_png_size(data), max_pixels)
    _check_png(data)
    return _decode_by_opencv(data, channels, 'PNG')
  if not data:
    raise ValueError('there are no bytes')
  raise ValueError(
    f'neither a PNG nor a JPEG image: it begins with {data[:8].hex(" ")}'
  )


def _check_size(width: int, height: int, max_pixels: int) -> None:
  if width * height > max_pixels:
    raise ValueError(
      f'the header claims {width} x {height} pixels, more than {max_pixels:,}'
    )


def _png_size(data: bytes) -> tuple[int, int]:
  """Returns (width, height) of IHDR, which is the first chunk."""
  return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _jpeg_size(data: bytes) -> tuple[int, int]:
  """Returns (width, height) of the first frame; (0, 0) where there is none.

  Not simplejpeg's: that gives up on rare kinds of subsampling.
  """
  start = data.find(b'\xff', len(_JPEG_SIGNATURE))
  while 0 <= start < len(data) - 8:
    kind = data[start + 1]
    if kind in _JPEG_FRAMES:
      height, width = data[start + 5 : start + 7], data[start + 7 : start + 9]
      return int.from_bytes(width), int.from_bytes(height)
    if kind == 0xFF:  # Fill.
      start += 1
    elif kind and kind not in _JPEG_BARE:
      start += 2 + int.from_bytes(data[start + 2 : start + 4])
    else:
      start += 2
    start = data.find(b'\xff', start)
  return 0, 0


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray:
  colorspace = 'GRAY' if channels == 1 else 'RGB'
  try:
    return simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True)
  except ValueError as error:
    if 'extraneous bytes' in str(error):  # Between two segments: no loss.
      return simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=False)
    if 'subsampling' not in str(error):
      raise
  return _decode_by_opencv(data, channels, 'JPEG')  # Knows the rare kinds, too.


def _decode_by_opencv(data: bytes, channels: int, kind: str) -> np.ndarray:
  mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  image = None
  with contextlib.suppress(cv2.error):  # A side longer than OpenCV takes.
    image = cv2.imdecode(
      np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION
    )
  if image is None:
    raise ValueError(f'the {kind} file is damaged')
  return image.reshape(*image.shape[:2], channels)


def _check_png(data: bytes) -> None:
  """Checks the sums of all chunks; libpng would complain on stderr.

  Raises:
    ValueError: a chunk is damaged, or the file ends too early.
  """
  start, kind = len(_PNG_SIGNATURE), b''
  while kind != b'IEND':
    length = int.from_bytes(data[start : start + 4])
    kind = data[start + 4 : start + 8]
    end = start + 8 + length
    checksum = data[end : end + 4]
    if len(checksum) < 4:
      raise ValueError('the PNG file ends too early')
    if zlib.crc32(data[start + 4 : end]) != int.from_bytes(checksum):
      raise ValueError('the PNG file is damaged')
    start = end + 4
