"""Image files to pixels: PNG and JPEG bytes to uint8 [H, W, C]."""

import contextlib
import zlib

import cv2
import numpy as np
import simplejpeg

from resnet.data.sources.base import Record, Source
from resnet.errors import InputError

# Over twice the largest image of ImageNet; more is taken for an attack or a
# damaged header, and no memory is asked for.
MAX_PIXELS = 2**27
# The most that the longer side may be, in lengths of the shorter one.
MAX_ASPECT = 2**11

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_SIGNATURE = b'\xff\xd8'
# SOF0 .. SOF15 without the tables DHT, JPG and DAC among them.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_JPEG_SCAN = 0xDA
_JPEG_END = b'\xff\xd9'
# TEM, RST0 .. RST7 and SOI stand alone: no length follows.
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def image_size(data: bytes | np.ndarray) -> tuple[int, int] | None:
  """Returns (height, width) as the header says; None: it does not."""
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
  """Decodes PNG or JPEG bytes; an array passes as it is.

  The format is read from the bytes, not from a file's name. The pixels
  stay as they are stored: EXIF orientation is ignored, as it is by Pillow's
  `open` and `tf.io.decode_image`, with which the published networks were
  trained. CMYK is taken as inverted, as Adobe writes it and Pillow reads it;
  16 bits keep their upper eight; alpha is dropped.

  Args:
    data: the bytes of a file, or uint8 [H, W, channels].
    channels: 1 for grey, 3 for RGB, whatever the file holds.
    rows: only so many, from the top, are needed: the result may end there, and
      damage below them may not be found. None: all.
    max_pixels: more of them are refused.

  Returns:
    uint8 [H, W, channels]; where `rows` are given, it may be [rows, W,
    channels].

  Raises:
    ValueError: the bytes are not an image that can be decoded to its end.
  """
  if isinstance(data, np.ndarray):
    return data
  width, height, frame = _header(data)
  if width * height > max_pixels:
    raise ValueError(
      f'the header claims {width} x {height} pixels, more than {max_pixels:,}'
    )
  # Resized so that its shorter side has 256 pixels, it would have too many.
  if max(width, height) > MAX_ASPECT * min(width, height):
    raise ValueError(
      f'{width} x {height} pixels are too long and narrow: at most'
      f' {MAX_ASPECT:,} to 1'
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
    raise ValueError('there are no bytes')
  raise ValueError(
    f'it is neither PNG nor JPEG: convert it (it begins with {data[:12]!r})'
  )


def decode_record(
  source: Source, index: int, record: Record, rows: int | None = None
) -> np.ndarray:
  """Returns the image of a record, or raises an InputError that names it."""
  try:
    return decode_image(record['image'], source.channels, rows)
  except ValueError as error:
    raise InputError(
      f'The image of {source.key(index, record)} cannot be decoded: {error}.'
    ) from None


def _header(data: bytes) -> tuple[int, int, int | None]:
  """Returns width, height and, of a JPEG, where its frame begins.

  The sides are 0 where the header does not say them. Not by simplejpeg, which
  gives up on rare kinds of subsampling.
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
  """Whether these are the bytes of a JPEG of four inks."""
  frame = _header(data)[2]
  return frame is not None and data[frame + 9] == 4


def _find_segment(data: bytes, start: int, kinds: frozenset[int]) -> int | None:
  """Returns where the first segment of one of `kinds` begins."""
  start = data.find(b'\xff', start)
  while 0 <= start < len(data) - 9:
    kind = data[start + 1]
    if kind in kinds:
      return start
    if kind == 0xFF:  # Fill.
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
  """Returns the upper rows of a JPEG, bit for bit; None: decode all of it.

  Two thirds of the time go into Huffman codes, which must be read from the top
  down; but the decoder stops early where the header says that the image is less
  high. Not for progressive files, of many scans over all rows, nor for CMYK.
  """
  scan = _find_segment(data, frame + 2, frozenset({_JPEG_SCAN}))
  num_components = data[frame + 9]
  if data[frame + 1] not in _JPEG_SEQUENTIAL or num_components not in (1, 3):
    return None
  if scan is None or data[scan + 4] != num_components:
    return None
  # The end must be there, or the file is cut off somewhere.
  if data.rfind(_JPEG_END, len(data) - 64) < 0:
    return None
  factors = data[frame + 11 : frame + 10 + 3 * num_components : 3]
  factor = max(factor & 15 for factor in factors)
  # Chroma is interpolated between its rows: one row more than is wanted.
  block = 8 * factor
  height = -(-(rows + factor) // max(block, 1)) * block
  width, old_height, _ = _header(data)
  if not 0 < height < old_height:
    return None
  shorter = data[: frame + 5] + height.to_bytes(2) + data[frame + 7 :]
  image = np.empty((height, width, channels), np.uint8)
  colorspace = 'GRAY' if channels == 1 else 'RGB'
  try:
    simplejpeg.decode_jpeg(
      shorter, colorspace=colorspace, strict=True, buffer=image
    )
  except ValueError as error:
    # The first complaint is that of the rows left over, after the last pixel.
    if 'extraneous bytes' not in str(error):
      return None
  return image[:rows]  # The last ones lack the chroma below them.


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
  """Checks the sums of all chunks; libpng would complain on stderr."""
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
