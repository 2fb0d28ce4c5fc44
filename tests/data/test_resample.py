"""Resampling against Pillow and torchvision, on photographs."""

import functools

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from resnet.data.resample import resize
from resnet.data.transforms import EvalTransform

PIL_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


@functools.cache
def photographs():
  """Windows of odd sizes, 31 to 426 by 40 to 639 pixels, of two pictures."""
  pictures = datasets.load_sample_images().images
  rng = np.random.default_rng(0)
  windows = []
  for i in range(50):
    picture = pictures[i % 2]
    height = int(rng.integers(31, picture.shape[0]))
    width = int(rng.integers(40, picture.shape[1]))
    top = int(rng.integers(0, picture.shape[0] - height))
    left = int(rng.integers(0, picture.shape[1] - width))
    windows.append(picture[top : top + height, left : left + width])
  return windows


def share_within_one(image, expected):
  assert image.shape == expected.shape and image.dtype == np.uint8
  return np.mean(np.abs(image.astype(int) - expected) <= 1)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_evaluation_is_torchvisions(interpolation):
  torchvision = pytest.importorskip('torchvision')
  t = torchvision.transforms
  reference = t.Compose(
    [t.Resize(256, t.InterpolationMode(interpolation)), t.CenterCrop(224)]
  )
  ours = EvalTransform(size=224, resize_size=256, interpolation=interpolation)
  shares = []
  for image in photographs():
    box = ours.box(*image.shape[:2], [])
    expected = np.asarray(reference(Image.fromarray(image)), int)
    shares.append(share_within_one(ours(image, box, []), expected))
  assert len(shares) == 50 and min(shares) > 0.999


@pytest.mark.parametrize('size', [(224, 224), (37, 301), (300, 41), (500, 700)])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('interpolation', PIL_FILTERS)
def test_resizing_is_pillows(interpolation, channels, size):
  for image in photographs()[:8]:
    image = image[..., :channels]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(size[::-1], PIL_FILTERS[interpolation])
    expected = np.asarray(picture, int).reshape(*size, channels)
    assert share_within_one(resize(image, *size, interpolation), expected) > (
      0.999
    )


def test_shrinking_averages_and_enlarging_interpolates():
  image = np.array([[10, 20, 0, 4], [30, 40, 8, 12]], np.uint8)[..., None]
  # A triangle of twice the width: weights 3, 3, 1 of 7 at the border.
  rows = image[..., 0].mean(0)
  left = (3 * rows[0] + 3 * rows[1] + rows[2]) / 7
  right = (3 * rows[3] + 3 * rows[2] + rows[1]) / 7
  found = resize(image, 1, 2).ravel().tolist()
  assert found == pytest.approx([left, right], abs=0.7)
  line = np.array([[0, 100]], np.uint8)[..., None]
  assert resize(line, 1, 4).ravel().tolist() == [0, 25, 75, 100]


def test_a_stripe_pattern_does_not_alias():
  stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
  small = resize(stripes, 16, 16)[2:-2, 2:-2]
  assert np.abs(small.astype(int) - 127).max() <= 2
