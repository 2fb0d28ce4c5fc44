"""Decoding against Pillow; whatever is broken or too large is refused."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
from PIL import Image
import pytest

from resnet.data.images import MAX_PIXELS, decode_image, image_size, is_cmyk
from resnet.errors import InputError
from tests.data.in_memory import encode, make_source, smooth_image

COLOURS = smooth_image(37, 53)
CMYK = encode(COLOURS, 'JPEG', 'CMYK')


def with_adobe_transform(jpeg, transform):
  """Says of the same bytes that they are CMYK (0) or YCCK (2)."""
  place = jpeg.index(b'Adobe') + 11
  return jpeg[:place] + bytes([transform]) + jpeg[place + 1 :]


def without_adobe(jpeg):
  place = jpeg.index(b'Adobe')
  return jpeg[: place - 4] + jpeg[place + 12 :]


def odd_subsampling(jpeg):
  """Says that a chroma plane has other lines than the other one."""
  place = jpeg.index(b'\xff\xc0') + 14
  return jpeg[:place] + b'\x21' + jpeg[place + 1 :]


def png_header(width, height, ihdr=b'\x08\x02\0\0\0'):
  """Well formed chunks that promise so many pixels and have none."""
  chunks = [
    (b'IHDR', struct.pack('>II', width, height) + ihdr),
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


def resized_jpeg(jpeg, width, height):
  """The same bytes under a frame header of another size."""
  place = jpeg.index(b'\xff\xc0') + 5
  size = struct.pack('>HH', height, width)
  return jpeg[:place] + size + jpeg[place + 4 :]


FILES = {
  'jpeg': encode(COLOURS, 'JPEG'),
  'jpeg 4:4:4': encode(COLOURS, 'JPEG', quality=95, subsampling=0),
  'jpeg progressive': encode(COLOURS, 'JPEG', progressive=True),
  'jpeg grey': encode(COLOURS, 'JPEG', 'L'),
  'jpeg cmyk': CMYK,
  'jpeg ycck': with_adobe_transform(CMYK, 2),
  'jpeg cmyk without adobe': without_adobe(CMYK),
  'png': encode(COLOURS, 'PNG'),
  'png alpha': encode(COLOURS, 'PNG', 'RGBA'),
  'png palette': encode(COLOURS, 'PNG', 'P'),
  'png palette of 2 bit': encode(COLOURS, 'PNG', 'P', bits=2),
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


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', FILES)
def test_upper_rows_are_those_of_the_whole(name, channels):
  whole = decode_image(FILES[name], channels)
  for rows in range(1, 38):
    upper = decode_image(FILES[name], channels, rows)
    assert len(upper) in (rows, 37)
    np.testing.assert_array_equal(upper, whole[: len(upper)])


@pytest.mark.parametrize('subsampling', [0, 1, 2])
@pytest.mark.parametrize('channels', [1, 3])
def test_rows_below_those_wanted_are_not_decoded(subsampling, channels):
  noise = np.random.default_rng(0).integers(0, 256, (150, 61, 3), np.uint8)
  jpeg = encode(noise, 'JPEG', subsampling=subsampling)
  whole = decode_image(jpeg, channels)
  for rows in range(1, 151):
    upper = decode_image(jpeg, channels, rows)
    assert len(upper) == (rows if rows < 126 else len(upper)) >= rows
    np.testing.assert_array_equal(upper, whole[: len(upper)])


def test_a_file_that_is_cut_is_an_error_whatever_rows_are_wanted():
  jpeg = encode(smooth_image(200, 200), 'JPEG')
  assert len(decode_image(jpeg, 3, 20)) == 20
  # Each place in the header, and some behind.
  for length in [*range(700), *range(700, len(jpeg) - 1, 97)]:
    with pytest.raises(ValueError):
      decode_image(jpeg[:length], 3, 20)
    is_cmyk(jpeg[:length])


def test_the_header_tells_the_size():
  for name, data in FILES.items():
    assert image_size(data) == (37, 53), name
  assert image_size(COLOURS) == (37, 53)
  assert image_size(b'') is image_size(b'\xff\xd8') is None


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_exif_orientation_is_ignored(file_format):
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: turn by a quarter.
  plain = decode_image(encode(COLOURS, file_format), 3)
  data = encode(COLOURS, file_format, exif=exif)
  assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
  turned = decode_image(data, 3)
  assert turned.shape == COLOURS.shape
  np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', FILES)
def test_file_that_is_cut_anywhere_is_an_error(name, channels):
  data = FILES[name]
  for length in [*range(0, len(data), 23), len(data) - 1]:
    with pytest.raises(ValueError):
      decode_image(data[:length], channels)


def test_png_with_any_byte_flipped_is_an_error():
  data = encode(COLOURS[:6, :5], 'PNG')
  for place in range(len(data) - 4):  # The last four are of the empty IEND.
    broken = bytearray(data)
    broken[place] ^= 1
    with pytest.raises(ValueError):
      decode_image(bytes(broken), 3)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'no image',
    b'\xff\xd8',
    b'\xff\xd8' + b'\xff' * 99,
    bytes(99),
    encode(COLOURS, 'BMP'),
    png_header(100, 100),
  ],
  ids=['empty', 'text', 'soi', 'fill', 'zeros', 'bmp', 'png without pixels'],
)
def test_bytes_that_are_no_image_are_an_error(data):
  with pytest.raises(ValueError):
    decode_image(data, 3)


def test_a_png_may_be_named_jpeg():
  record = {'image': FILES['png'], 'file_name': 'n02105855_2933.JPEG'}
  image = make_source([], channels=3).decode(0, record)
  np.testing.assert_array_equal(image, COLOURS)


def test_colours_of_16_bits_keep_the_upper_eight():
  # Pillow does not write these.
  pixels = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), np.uint16)
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  chunks = png_header(7, 5, b'\x10\x02\0\0\0')
  data = zlib.compress(rows)
  idat = b'IDAT' + data
  place = chunks.index(b'IDAT') - 4
  png = chunks[:place] + struct.pack('>I', len(data)) + idat
  png += struct.pack('>I', zlib.crc32(idat)) + chunks[-12:]
  np.testing.assert_array_equal(decode_image(png, 3), pixels >> 8)


def test_a_rare_subsampling_that_is_cut_is_an_error():
  data = odd_subsampling(encode(COLOURS, 'JPEG', subsampling=2))
  for length in range(data.index(b'\xff\xda'), len(data) - 2, 23):
    with pytest.raises(ValueError):
      decode_image(data[:length], 3)


@pytest.mark.parametrize(
  'data',
  [
    png_header(100_000, 100_000),
    png_header(2**31 - 1, 1),
    png_header(2**14, 2**13 + 1),
    resized_jpeg(encode(COLOURS, 'JPEG'), 65_535, 65_535),
    resized_jpeg(without_adobe(CMYK), 16_384, 16_384),
    # A segment that holds what looks like a small frame.
    b'\xff\xd8\xff\xe1\0\x0b\xff\xc0\0\x11\x08\0\1\0\1'
    + resized_jpeg(encode(COLOURS, 'JPEG'), 65_535, 65_535)[2:],
  ],
)
def test_too_many_pixels_are_refused_by_the_header(data):
  tracemalloc.start()
  start = time.monotonic()
  with pytest.raises(InputError, match=r'record 5 .* claims .* pixels, more'):
    make_source([], channels=3).decode(5, {'image': data})
  assert time.monotonic() - start < 0.5
  assert tracemalloc.get_traced_memory()[1] < 2**20
  tracemalloc.stop()


def test_the_largest_size_is_not_refused_by_the_header():
  assert MAX_PIXELS == 2**14 * 2**13
  with pytest.raises(ValueError, match='damaged'):
    decode_image(png_header(2**14, 2**13), 1)
