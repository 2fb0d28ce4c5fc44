"""Every operation against torchvision's, over its whole range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.data import operations, policies
from resnet.data.geometry import INTERPOLATIONS
from resnet.data.operations import OPERATIONS, apply_operations
from tests.data.in_memory import smooth_image

torch = pytest.importorskip('torch')
v2 = pytest.importorskip('torchvision.transforms.v2')

# The widest that RandAugment, TrivialAugment, AutoAugment and jitter go.
RANGES = {
  'ShearX': (-0.99, 0.99),
  'ShearY': (-0.99, 0.99),
  'TranslateX': (-32.0, 32.0),
  'TranslateY': (-32.0, 32.0),
  'Rotate': (-135.0, 135.0),
  'Brightness': (-1.0, 1.0),
  'Color': (-1.0, 1.0),
  'Contrast': (-1.0, 1.0),
  'Sharpness': (-1.0, 1.0),
  'Posterize': (0.0, 8.0),
  'Solarize': (0.0, 1.0),
}
GEOMETRIC = OPERATIONS[1:6]
COUNT = 25
# Shears of the policies that put lines just between two pixels: of a shear by
# p / q, both odd, all places of line y are so where 2 * y + 1 is an odd
# multiple of q. (Others have no such line in these images.)
SHEARS_WITH_TIES = (1 / 25, 1 / 15, 3 / 25, 1 / 5, 7 / 25)


def theirs(image, name, magnitude, interpolation):
  """Returns the image [H, W, C] of torchvision's classes of policies."""
  y = v2.RandAugment()._apply_image_or_video_transform(
    torch.tensor(image.transpose(2, 0, 1)),
    name,
    magnitude,
    v2.InterpolationMode(interpolation),
    {torch.Tensor: None},
  )
  return y.numpy().transpose(1, 2, 0)


def images_of(channels):
  """Noise, a dull and a smooth picture, and one of a single colour."""
  rng = np.random.default_rng(0)
  shape = (37, 29, channels)
  return {
    'noise': rng.integers(0, 256, shape, np.uint8),
    'dull': rng.integers(60, 110, shape, np.uint8),
    'smooth': smooth_image(37, 29)[..., :channels],
    'flat': np.full(shape, 77, np.uint8),
  }


apply = jax.jit(apply_operations, static_argnames=('names', 'interpolation'))


def differing(image, names, magnitudes, interpolation):
  """Yields name, magnitude and share of pixels that differ by more than one."""
  found = np.array(
    apply(
      jnp.array(np.repeat(image[None], len(names), axis=0)),
      jnp.array([OPERATIONS.index(name) for name in names], jnp.int32),
      jnp.array(magnitudes, jnp.float32),
      interpolation=interpolation,
    )
  )
  assert found.dtype == np.uint8
  for name, magnitude, ours in zip(names, magnitudes, found, strict=True):
    distance = _distance(ours, image, name, magnitude, interpolation)
    # On such a line either pixel is right: the classes leave it to the noise of
    # float32. All others are compared at just this magnitude.
    if interpolation == 'nearest' and name.startswith('Shear'):
      lines = _lines_with_ties(name, magnitude, *image.shape[:2])
      for nudge in (-1e-5, 1e-5) if lines.any() else ():
        other = _distance(ours, image, name, magnitude + nudge, interpolation)
        distance = np.where(lines, np.minimum(distance, other), distance)
    yield name, magnitude, np.mean(distance > 1)


def _lines_with_ties(name, magnitude, height, width):
  """Returns rows [H, 1, 1] of ShearX or columns [1, W, 1] of ShearY."""
  shape = (height, 1, 1) if name == 'ShearX' else (1, width, 1)
  if not np.isclose(abs(magnitude), SHEARS_WITH_TIES, rtol=1e-6).any():
    return np.zeros(shape, bool)
  middles = np.arange(max(shape)).reshape(shape) + 0.5
  return np.isclose(abs(magnitude) * middles % 1, 0.5, rtol=0, atol=1e-5)


def _distance(ours, *case):
  return np.abs(ours.astype(int) - theirs(*case).astype(int))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_an_operation_is_that_of_torchvision(interpolation, channels):
  names, magnitudes = [], []
  for name in OPERATIONS if interpolation == 'nearest' else GEOMETRIC:
    steps = np.linspace(*RANGES.get(name, (0.0, 0.0)), COUNT, dtype=np.float32)
    steps = np.unique(np.round(steps) if name == 'Posterize' else steps)
    names += [name] * len(steps)
    magnitudes += steps.tolist()
  pictures = images_of(channels)
  for picture in (
    pictures if interpolation == 'nearest' else ('noise', 'smooth')
  ):
    image = pictures[picture]
    for name, magnitude, share in differing(
      image, names, magnitudes, interpolation
    ):
      assert share <= 0.005, (picture, name, magnitude)


@pytest.mark.parametrize(
  ('is_wide', 'bins'), [(False, 10), (False, 31), (True, 31)]
)
@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_each_magnitude_of_a_policy_is_that_of_torchvision(
  interpolation, is_wide, bins
):
  image = np.random.default_rng(0).integers(0, 256, (28, 32, 3), np.uint8)
  table = policies.space(OPERATIONS, bins, 28, 32, is_wide=is_wide)
  names, magnitudes = [], []
  for name in OPERATIONS if interpolation == 'nearest' else GEOMETRIC:
    values = np.unique(table[name])
    if name in OPERATIONS[1:10]:
      values = np.unique([values, -values])
    names += [name] * len(values)
    magnitudes += values.tolist()
  # One size, so one compilation, for all policies.
  missing = 620 - len(names)
  names, magnitudes = (
    names + ['Identity'] * missing,
    magnitudes + [0.0] * missing,
  )
  for name, magnitude, share in differing(
    image, names, magnitudes, interpolation
  ):
    assert share <= 0.005, (name, magnitude)


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
  for part in (OPERATIONS[:7], OPERATIONS[7:]):
    names = part[::-1]
    rows = np.array([OPERATIONS.index(name) for name in names])
    alone = apply(
      jnp.array(images[rows]),
      jnp.arange(len(names), dtype=jnp.int32),
      jnp.array(magnitudes[rows]),
      names=names,
    )
    differs = np.abs(np.array(alone).astype(int) - np.array(together)[rows]) > 1
    assert differs.mean(axis=(1, 2, 3)).max() <= 0.001, names


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
