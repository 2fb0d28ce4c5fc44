"""Every operation against torchvision's, over its whole range."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.data import operations
from resnet.data.geometry import INTERPOLATIONS
from resnet.data.operations import OPERATIONS, apply_operations
from tests.data.in_memory import smooth_image

torch = pytest.importorskip('torch')
F = pytest.importorskip('torchvision.transforms.v2.functional')

# The widest that RandAugment, TrivialAugment and AutoAugment go.
RANGES = {
  'ShearX': (-0.99, 0.99),
  'ShearY': (-0.99, 0.99),
  'TranslateX': (-32.0, 32.0),
  'TranslateY': (-32.0, 32.0),
  'Rotate': (-135.0, 135.0),
  'Brightness': (-0.99, 0.99),
  'Color': (-0.99, 0.99),
  'Contrast': (-0.99, 0.99),
  'Sharpness': (-0.99, 0.99),
  'Posterize': (0.0, 8.0),
  'Solarize': (0.0, 1.0),
}
COUNT = 25


def theirs(image, name, magnitude, interpolation):
  """Returns torchvision's image [H, W, C]."""
  x = torch.tensor(image.transpose(2, 0, 1))
  affine = functools.partial(
    F.affine,
    angle=0.0,
    scale=1.0,
    interpolation=F.InterpolationMode(interpolation),
  )
  degrees = math.degrees(math.atan(magnitude))
  still = {'translate': [0, 0], 'center': [0, 0]}
  y = {
    'Identity': lambda: x,
    'ShearX': lambda: affine(x, shear=[degrees, 0.0], **still),
    'ShearY': lambda: affine(x, shear=[0.0, degrees], **still),
    'TranslateX': lambda: affine(
      x, translate=[int(magnitude), 0], shear=[0.0, 0.0]
    ),
    'TranslateY': lambda: affine(
      x, translate=[0, int(magnitude)], shear=[0.0, 0.0]
    ),
    'Rotate': lambda: F.rotate(
      x, magnitude, interpolation=F.InterpolationMode(interpolation)
    ),
    'Brightness': lambda: F.adjust_brightness(x, 1 + magnitude),
    'Color': lambda: F.adjust_saturation(x, 1 + magnitude),
    'Contrast': lambda: F.adjust_contrast(x, 1 + magnitude),
    'Sharpness': lambda: F.adjust_sharpness(x, 1 + magnitude),
    'Posterize': lambda: F.posterize(x, int(magnitude)),
    'Solarize': lambda: F.solarize(x, 255 * magnitude),
    'AutoContrast': lambda: F.autocontrast(x),
    'Equalize': lambda: F.equalize(x),
    'Invert': lambda: F.invert(x),
  }[name]()
  return y.numpy().transpose(1, 2, 0)


def images_of(channels):
  """Noise, a dull and a smooth picture, and one of a single colour."""
  rng = np.random.default_rng(0)
  shape = (53, 47, channels)
  return {
    'noise': rng.integers(0, 256, shape, np.uint8),
    'dull': rng.integers(60, 110, shape, np.uint8),
    'smooth': smooth_image(53, 47)[..., :channels],
    'flat': np.full(shape, 77, np.uint8),
  }


apply = jax.jit(apply_operations, static_argnames='interpolation')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_is_that_of_torchvision(name, channels):
  magnitudes = np.linspace(*RANGES.get(name, (0.0, 0.0)), COUNT)
  if name == 'Posterize':
    magnitudes = np.round(magnitudes)
  magnitudes = magnitudes.astype(np.float32)
  is_geometric = name in OPERATIONS[1:6]
  for interpolation in INTERPOLATIONS if is_geometric else ('nearest',):
    for picture, image in images_of(channels).items():
      found = np.array(
        apply(
          jnp.array(np.repeat(image[None], COUNT, axis=0)),
          jnp.full(COUNT, OPERATIONS.index(name), jnp.int32),
          jnp.array(magnitudes),
          interpolation=interpolation,
        )
      )
      assert found.dtype == np.uint8
      for ours, magnitude in zip(found, magnitudes.tolist(), strict=True):
        expected = theirs(image, name, magnitude, interpolation)
        differs = np.abs(ours.astype(int) - expected) > 1
        assert differs.mean() <= 0.005, (picture, magnitude, interpolation)


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_an_operation_of_no_magnitude_leaves_the_image(interpolation):
  image = images_of(3)['noise']
  for name in ('Identity', *RANGES):
    magnitude = {'Posterize': 8.0, 'Solarize': 1.01}.get(name, 0.0)
    found = apply(
      jnp.array(image[None]),
      jnp.array([OPERATIONS.index(name)], jnp.int32),
      jnp.array([magnitude], jnp.float32),
      interpolation=interpolation,
    )
    np.testing.assert_array_equal(found[0], image, err_msg=name)


def test_images_of_a_batch_have_operations_of_their_own():
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (len(OPERATIONS), 20, 24, 3), np.uint8)
  kinds = np.arange(len(OPERATIONS), dtype=np.int32)
  # (At 0.6 many places lie between two pixels, which rounding decides.)
  magnitudes = np.full(len(kinds), 0.617, np.float32)
  magnitudes[list(OPERATIONS).index('Posterize')] = 3
  magnitudes[3:6] = 7.4
  together = apply(jnp.array(images), jnp.array(kinds), jnp.array(magnitudes))
  for i, name in enumerate(OPERATIONS):
    expected = theirs(images[i], name, float(magnitudes[i]), 'nearest')
    differs = np.abs(np.array(together[i]).astype(int) - expected) > 1
    assert differs.mean() <= 0.005, name
    # Of fewer operations to choose from, with other numbers.
    alone = apply_operations(
      jnp.array(images[i : i + 1]),
      jnp.array([0], jnp.int32),
      jnp.array(magnitudes[i : i + 1]),
      names=(name,),
    )
    differs = np.abs(np.array(alone[0]).astype(int) - np.array(together[i])) > 1
    assert differs.mean() <= 0.001, name


def test_an_image_of_two_pixels_is_not_sharpened():
  image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3) * 20
  found = apply(
    jnp.array(image),
    jnp.array([OPERATIONS.index('Sharpness')], jnp.int32),
    jnp.array([0.9], jnp.float32),
  )
  np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize('channels', [1, 3])
def test_pixels_are_counted_alike_on_all_backends(channels):
  images = jnp.stack(list(map(jnp.array, images_of(channels).values())))
  expected = [
    [
      np.searchsorted(np.sort(x[..., c].ravel()), np.arange(256))
      for c in range(channels)
    ]
    for x in np.asarray(images)
  ]
  for below in (operations._below_by_counting, operations._below_by_comparing):
    np.testing.assert_array_equal(jax.jit(below)(images), expected)
