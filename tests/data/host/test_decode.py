"""Decoding against Pillow; whatever is broken or too large is refused."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
from PIL import Image
import pytest

from resnet.data.host.decode import (
  MAX_PIXELS,
  decode_image,
  decode_record,
  image_size,
  is_cmyk,
)
from resnet.errors import InputError
from tests.data.in_memory import encode, make_source, smooth_image

COLOURS = smooth_image(37, 53)
CMYK = encode(COLOURS, 'JPEG', 'CMYK')
FRAME = b'\xff\xc0'
HUGE = struct.pack('>HH', 65_535, 65_535)


def with_bytes(jpeg, segment, offset, data):
  """Returns the JPEG with other bytes at an offset from a segment's marker."""
  place = jpeg.index(segment) + offset
  return jpeg[:place] + data + jpeg[place + len(data) :]


def png_header(width, height):
  """Well formed chunks that promise so many pixels and have none."""
  chunks = [
    (b'IHDR', struct.pack('>II', width, height) + b'\x08\x02\0\0\0'),
    (b'IDAT', zlib.compress(b'')),
    (b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in chunks
  )


FILES = {
  'jpeg': encode(COLOURS, 'JPEG'),
  'jpeg 4:4:4': encode(COLOURS, 'JPEG', quality=95, subsampling=0),
  'jpeg progressive': encode(COLOURS, 'JPEG', progressive=True),
  'jpeg grey': encode(COLOURS, 'JPEG', 'L'),
  'jpeg cmyk': CMYK,
  'jpeg ycck': with_bytes(CMYK, b'Adobe', 11, b'\x02'),
  'png': encode(COLOURS, 'PNG'),
  'png alpha': encode(COLOURS, 'PNG', 'RGBA'),
  'png palette': encode(COLOURS, 'PNG', 'P'),
  'png palette alpha': encode(COLOURS, 'PNG', 'P', transparency=3),
  'png 1 bit': encode(COLOURS, 'PNG', '1'),
  'png grey alpha': encode(COLOURS, 'PNG', 'LA'),
  'png grey': encode(COLOURS, 'PNG', 'L'),
  'png 16 bit': encode(COLOURS[..., 0] * np.uint16(257), 'PNG'),
}


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', FILES)
def test_decoding_agrees_with_pillow(name, channels):
  picture = Image.open(io.BytesIO(FILES[name]))
  if name == 'png 16 bit':  # Pillow would clip, not scale.
    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  picture = picture.convert('L' if channels == 1 else 'RGB')
  expected = np.asarray(picture, int).reshape(37, 53, channels)
  image = decode_image(FILES[name], channels)
  assert (image.shape, image.dtype) == (expected.shape, np.uint8)
  # PNG in its own channels is exact. The weights of grey, the inks of CMYK and
  # the chroma of JPEG may be rounded differently.
  exact = name.startswith('png') and (channels == 3 or 'grey' in name)
  assert np.abs(image - expected).max() <= (0 if exact else 2)
  for rows in (1, 7, 8, 16, 17, 36, 37):
    upper = decode_image(FILES[name], channels, rows)
    assert len(upper) in (rows, 37)
    np.testing.assert_array_equal(upper, image[: len(upper)])


@pytest.mark.parametrize(
  ('subsampling', 'channels'), [(0, 3), (1, 3), (2, 3), (2, 1)]
)
def test_rows_below_the_crop_are_not_decoded(subsampling, channels):
  noise = np.random.default_rng(0).integers(0, 256, (150, 61, 3), np.uint8)
  jpeg = encode(noise, 'JPEG', subsampling=subsampling)
  whole = decode_image(jpeg, channels)
  for rows in range(1, 151):
    upper = decode_image(jpeg, channels, rows)
    assert len(upper) == (rows if rows < 126 else len(upper)) >= rows
    np.testing.assert_array_equal(upper, whole[: len(upper)])


@pytest.mark.parametrize('name', FILES)
def test_header_gives_the_size_and_a_truncated_file_is_an_error(name):
  data = FILES[name]
  assert image_size(data) == (37, 53)
  for length in [*range(0, len(data), 23), len(data) - 1]:
    for channels in (1, 3):
      with pytest.raises(ValueError):
        decode_image(data[:length], channels)


def test_truncated_jpeg_is_an_error_even_if_few_rows_are_needed():
  jpeg = encode(smooth_image(200, 200), 'JPEG')
  assert len(decode_image(jpeg, 3, 20)) == 20
  # Each place in the header, and some behind.
  for length in [*range(700), *range(700, len(jpeg) - 1, 97)]:
    with pytest.raises(ValueError):
      decode_image(jpeg[:length], 3, 20)
    is_cmyk(jpeg[:length])


def test_exif_orientation_is_ignored():
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: turn by a quarter.
  for kind in ('JPEG', 'PNG'):
    plain = decode_image(encode(COLOURS, kind), 3)
    turned = decode_image(encode(COLOURS, kind, exif=exif), 3)
    np.testing.assert_array_equal(turned, plain)


def test_png_with_any_byte_flipped_is_an_error():
  data = encode(COLOURS[:6, :5], 'PNG')
  for place in range(len(data) - 4):  # The last four are of the empty IEND.
    broken = bytearray(data)
    broken[place] ^= 1
    with pytest.raises(ValueError):
      decode_image(bytes(broken), 3)


def test_bytes_that_are_no_image_are_an_error():
  for data in (
    b'',
    b'no image',
    b'\xff\xd8' + b'\xff' * 99,
    encode(COLOURS, 'BMP'),
    png_header(100, 100),
  ):
    with pytest.raises(ValueError):
      decode_image(data, 3)
  assert image_size(b'') is image_size(b'\xff\xd8') is None


@pytest.mark.parametrize(
  'data',
  [
    png_header(2**14, 2**13 + 1),
    # A segment that holds what looks like a small frame.
    b'\xff\xd8\xff\xe1\0\x0b\xff\xc0\0\x11\x08\0\1\0\1'
    + with_bytes(encode(COLOURS, 'JPEG'), FRAME, 5, HUGE)[2:],
  ],
)
def test_too_many_pixels_are_refused_by_the_header(data):
  tracemalloc.start()
  with pytest.raises(InputError, match=r'record 5 .* claims .* pixels, more'):
    decode_record(make_source([], channels=3), 5, {'image': data})
  assert tracemalloc.get_traced_memory()[1] < 2**20
  tracemalloc.stop()
  # The largest one that is not refused.
  assert MAX_PIXELS == 2**14 * 2**13
  with pytest.raises(ValueError, match='damaged'):
    decode_image(png_header(2**14, 2**13), 1)


def test_the_first_bytes_of_another_kind_of_image_are_shown():
  with pytest.raises(ValueError, match=r'neither PNG nor JPEG.*RIFF.*WEBP'):
    decode_image(encode(COLOURS, 'WEBP'), 3)
