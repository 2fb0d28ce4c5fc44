"""Resampling against Pillow and torchvision, on photographs."""

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from resnet.data.host.resize import resize
from resnet.data.host.transforms import EvalTransform
from resnet.inference.preprocessing import ImageTransform
from tests.data.in_memory import encode
from tests.networks import make_preprocessing

PIL_FILTERS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


@pytest.fixture(scope='module')
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
def test_evaluation_and_prediction_see_the_pixels_of_torchvision(
  interpolation, photographs
):
  torchvision = pytest.importorskip('torchvision')
  t = torchvision.transforms
  reference = t.Compose(
    [t.Resize(256, t.InterpolationMode(interpolation)), t.CenterCrop(224)]
  )
  ours = EvalTransform(size=224, resize_size=256, interpolation=interpolation)
  predict = ImageTransform(
    preprocessing=make_preprocessing(224, interpolation=interpolation)
  )
  for image in photographs:
    box = ours.box(*image.shape[:2], [])
    evaluated = ours(image, box, [])
    expected = np.asarray(reference(Image.fromarray(image)), int)
    assert share_within_one(evaluated, expected) > 0.999
    (predicted,) = predict(encode(image, 'PNG'))
    np.testing.assert_array_equal(predicted, evaluated)


@pytest.mark.parametrize('size', [(224, 224), (37, 301), (500, 700)])
@pytest.mark.parametrize('interpolation', PIL_FILTERS)
def test_resizing_equals_pillow(interpolation, size, photographs):
  for i, image in enumerate(photographs[:8]):
    channels = (1, 3)[i // 4]
    image = image[..., :channels]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize(size[::-1], PIL_FILTERS[interpolation])
    expected = np.asarray(picture, int).reshape(*size, channels)
    assert share_within_one(resize(image, *size, interpolation), expected) > (
      0.999
    )
