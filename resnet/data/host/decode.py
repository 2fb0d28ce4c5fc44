"""Decodes PNG and JPEG bytes to uint8 [H, W, C]."""

import contextlib
import functools
import zlib

import cv2
import numpy as np
import simplejpeg

from resnet.data.sources.base import Record, Source
from resnet.errors import InputError

# Over twice the largest image of ImageNet. A larger size is rejected as an
# attack or a damaged header, before memory is allocated.
MAX_PIXELS = 2**27
# The largest ratio of the longer side to the shorter one.
MAX_ASPECT = 2**11

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_SIGNATURE = b'\xff\xd8'
# SOF0 .. SOF15, except DHT, JPG and DAC, which lie among them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_SCAN = 0xDA
_JPEG_END = b'\xff\xd9'
# TEM, RST0 .. RST7 and SOI have no length field.
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
COLORSPACES = {1: 'GRAY', 3: 'RGB'}  # simplejpeg's names, by channels.


def image_size(data: bytes | np.ndarray) -> tuple[int, int] | None:
  """Returns (height, width) from the header, or None if it has no size."""
  if isinstance(data, np.ndarray):
    return data.shape[0], data.shape[1]
  width, height, _ = _header(data)
  return (height, width) if width and height else None


def decode_image(
  data: bytes | np.ndarray,
  channels: int,
  rows: int | None = None,
  *,
  max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
  """Decodes PNG or JPEG bytes; an array is returned unchanged.

  The format is detected from the bytes, not from the file name. EXIF
  orientation is ignored, as in Pillow's `open` and `tf.io.decode_image`, with
  which the published networks were trained. CMYK is read as inverted, as Adobe
  writes it and Pillow reads it. Values of 16 bits keep the upper eight, and
  alpha is dropped.

  Args:
    data: bytes of a file, or uint8 [H, W, channels].
    channels: channels of the result, 1 for grey or 3 for RGB.
    rows: number of upper rows that are needed; the result may end there, and
      damage below them may go unnoticed. None for all rows.
    max_pixels: largest number of pixels that is accepted.

  Returns:
    uint8 [H, W, channels], or [rows, W, channels] if it ends at `rows`.

  Raises:
    ValueError: the bytes are damaged, of another format, or too large.
  """
  if isinstance(data, np.ndarray):
    return data
  width, height, frame = _header(data)
  if width * height > max_pixels:
    raise ValueError(
      f'the header claims {width} x {height} pixels, more than {max_pixels:,}'
    )
  # Resized to a shorter side of 256, it would have more than MAX_PIXELS.
  if max(width, height) > MAX_ASPECT * min(width, height):
    raise ValueError(
      f'{width} x {height} pixels are too long and narrow: the longer side'
      f' may be at most {MAX_ASPECT:,} times the shorter one'
    )
  if data.startswith(_PNG_SIGNATURE):
    _check_png(data)
    return _decode_by_opencv(data, channels, 'PNG')
  if data.startswith(_JPEG_SIGNATURE):
    image = None
    if rows is not None and frame is not None:
      image = _decode_upper_rows(data, frame, channels, rows)
    return _decode_jpeg(data, channels) if image is None else image
  if not data:
    raise ValueError('the file is empty')
  raise ValueError(
    f'it is neither PNG nor JPEG: convert it (it begins with {data[:12]!r})'
  )


def decode_record(
  source: Source, index: int, record: Record, rows: int | None = None
) -> np.ndarray:
  """Decodes the image of a record; an InputError names a broken record."""
  try:
    return decode_image(record['image'], source.channels, rows)
  except ValueError as error:
    raise InputError(
      f'The image of {source.key(index, record)} cannot be decoded: {error}.'
    ) from None


def _header(data: bytes) -> tuple[int, int, int | None]:
  """Returns width, height and, for a JPEG, the offset of its frame segment.

  Width and height are 0 if the header has none. (simplejpeg's own function
  rejects rare kinds of subsampling.)
  """
  if data.startswith(_PNG_SIGNATURE):  # IHDR is the first chunk.
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), None
  frame = None
  if data.startswith(_JPEG_SIGNATURE):
    frame = _find_segment(data, len(_JPEG_SIGNATURE), _JPEG_FRAMES)
  if frame is None:
    return 0, 0, None
  height, width = data[frame + 5 : frame + 7], data[frame + 7 : frame + 9]
  return int.from_bytes(width), int.from_bytes(height), frame


def is_cmyk(data: bytes) -> bool:
  """Returns whether these are the bytes of a CMYK JPEG."""
  frame = _header(data)[2]
  return frame is not None and data[frame + 9] == 4


def _find_segment(data: bytes, start: int, kinds: frozenset[int]) -> int | None:
  """Returns the offset of the first segment of one of `kinds`."""
  start = data.find(b'\xff', start)
  while 0 <= start < len(data) - 9:
    kind = data[start + 1]
    if kind in kinds:
      return start
    if kind == 0xFF:  # A fill byte.
      start += 1
    elif kind and kind not in _JPEG_BARE:
      start += 2 + int.from_bytes(data[start + 2 : start + 4])
    else:
      start += 2
    start = data.find(b'\xff', start)
  return None


def _decode_upper_rows(
  data: bytes, frame: int, channels: int, rows: int
) -> np.ndarray | None:
  """Decodes the upper rows of a JPEG, bit for bit as in the whole image.

  Two thirds of the decoding time go into Huffman codes, which must be read from
  the top down. A smaller height in the header makes the decoder stop early.

  Returns:
    The rows, or None if the whole file must be decoded: it is progressive (each
    scan covers all rows), CMYK, or truncated.
  """
  scan = _find_segment(data, frame + 2, frozenset({_JPEG_SCAN}))
  num_components = data[frame + 9]
  if (
    data[frame + 1] not in _JPEG_SEQUENTIAL
    or num_components not in (1, 3)
    or scan is None
    or data[scan + 4] != num_components
    or data.rfind(_JPEG_END, len(data) - 64) < 0
  ):
    return None
  factors = data[frame + 11 : frame + 10 + 3 * num_components : 3]
  factor = max(factor & 15 for factor in factors)
  # Chroma is interpolated between its rows, so decode one more row of it.
  block = 8 * factor
  height = -(-(rows + factor) // max(block, 1)) * block
  width, old_height, _ = _header(data)
  if not 0 < height < old_height:
    return None
  shorter = data[: frame + 5] + height.to_bytes(2) + data[frame + 7 :]
  image = np.empty((height, width, channels), np.uint8)
  try:
    simplejpeg.decode_jpeg(
      shorter, colorspace=COLORSPACES[channels], strict=True, buffer=image
    )
  except ValueError as error:
    # The other rows are reported as extra bytes after the last pixel.
    if 'extraneous bytes' not in str(error):
      return None
  return image[:rows]  # The rows after these lack the chroma below them.


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray:
  decode = functools.partial(
    simplejpeg.decode_jpeg, data, colorspace=COLORSPACES[channels]
  )
  try:
    return decode(strict=True)
  except ValueError as error:
    # Extra bytes between two segments lose no pixels.
    if 'extraneous bytes' in str(error):
      return decode(strict=False)
    if 'subsampling' not in str(error):
      raise
  # OpenCV also reads the rare kinds of subsampling.
  return _decode_by_opencv(data, channels, 'JPEG')


def _decode_by_opencv(data: bytes, channels: int, kind: str) -> np.ndarray:
  mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  image = None
  # OpenCV raises an error if a side is longer than it accepts.
  with contextlib.suppress(cv2.error):
    image = cv2.imdecode(
      np.frombuffer(data, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION
    )
  if image is None:
    raise ValueError(f'the {kind} file is damaged')
  return image.reshape(*image.shape[:2], channels)


def _check_png(data: bytes) -> None:
  """Checks the CRC of all chunks; libpng would print errors to stderr."""
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
