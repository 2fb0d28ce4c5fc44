"""Real photographs: Imagenette, ten classes of ImageNet."""

import io
import tarfile

import numpy as np
from PIL import Image
import pytest

from resnet.data.host.decode import decode_image, image_size


@pytest.fixture(scope='module')
def photographs(real_data):
  """The bytes of some photographs, from all over the archive."""
  path = real_data / 'imagenette.tar'
  if not path.is_file():
    pytest.skip(f'no real images: there is no {path}')
  with tarfile.open(path) as archive:
    files = [member for member in archive if member.isfile()]
    return [archive.extractfile(file).read() for file in files[::350]]


def test_photographs_are_decoded_as_pillow_decodes_them(photographs):
  assert 30 < len(photographs) <= 40
  modes = set()
  for data in photographs:
    picture = Image.open(io.BytesIO(data))
    modes.add(picture.mode)
    expected = np.asarray(picture.convert('RGB'), int)
    image = decode_image(data, 3)
    assert image_size(data) == image.shape[:2] == expected.shape[:2]
    assert np.abs(image - expected).max() <= 1
  assert modes == {'RGB', 'L'}
