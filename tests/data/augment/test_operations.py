"""Every operation against torchvision's, and against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps
import pytest

from resnet.data.augment import operations, policies
from resnet.data.augment.operations import OPERATIONS, apply_operations
from resnet.fields import FIELDS

INTERPOLATIONS = FIELDS['augment.interpolation'].choices

GEOMETRIC = OPERATIONS[1:6]


@pytest.fixture(scope='module')
def theirs():
  """(image [H, W, C], name, magnitude, interpolation) -> torchvision's."""
  torch = pytest.importorskip('torch')
  v2 = pytest.importorskip('torchvision.transforms.v2')

  def call(image, name, magnitude, interpolation):
    y = v2.RandAugment()._apply_image_or_video_transform(
      torch.tensor(image.transpose(2, 0, 1)),
      name,
      magnitude,
      v2.InterpolationMode(interpolation),
      {torch.Tensor: None},
    )
    return y.numpy().transpose(1, 2, 0).astype(int)

  return call


apply = jax.jit(apply_operations, static_argnames=('names', 'interpolation'))


def apply_each(image, names, magnitudes, interpolation='nearest'):
  """Returns an image for each pair of name and magnitude."""
  found = apply(
    jnp.array(np.repeat(image[None], len(names), axis=0)),
    jnp.array([OPERATIONS.index(name) for name in names], jnp.int32),
    jnp.array(magnitudes, jnp.float32),
    interpolation=interpolation,
  )
  assert found.dtype == np.uint8
  return np.array(found)


def assert_like_theirs(theirs, image, cases, interpolation):
  """Asserts that few pixels differ by more than one from torchvision's."""
  found = apply_each(image, *zip(*cases, strict=True), interpolation)
  for (name, magnitude), ours in zip(cases, found, strict=True):
    distance = np.abs(ours - theirs(image, name, magnitude, interpolation))
    if interpolation == 'nearest' and name.startswith('Shear'):
      # On a line just between two pixels float32 decides: either is right.
      axis = 0 if name == 'ShearX' else 1
      shifts = abs(magnitude) * (np.arange(image.shape[axis]) + 0.5) % 1
      is_tie = np.isclose(shifts, 0.5, rtol=0, atol=1e-5)
      distance = np.compress(~is_tie, distance, axis)
    assert np.mean(distance > 1) <= 0.005, (name, magnitude)


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_each_magnitude_of_a_policy_is_that_of_torchvision(
  interpolation, theirs
):
  tables = [
    policies.magnitude_table(OPERATIONS, bins, 28, 32, is_wide=is_wide)
    for is_wide, bins in ((False, 10), (False, 31), (True, 31))
  ]
  cases = []
  for name in OPERATIONS if interpolation == 'nearest' else GEOMETRIC:
    values = np.concatenate([table[name] for table in tables])
    if name in OPERATIONS[1:10]:
      values = np.concatenate([values, -values])
    cases += [(name, value) for value in np.unique(values).tolist()]
  noise = np.random.default_rng(0).integers(0, 256, (28, 32, 3), np.uint8)
  assert_like_theirs(theirs, noise, cases, interpolation)
  if interpolation != 'nearest':
    return
  # Dull colours, a single one, and gray.
  dull, flat = 60 + noise // 5, np.full_like(noise, 77)
  for image in (dull, flat, noise[..., :1]):
    assert_like_theirs(theirs, image, cases[::7], interpolation)


def sheared(image, amount):
  """Returns the image with old x = new x + amount * y, from the corner."""
  result, columns = np.zeros_like(image), np.arange(image.shape[1])
  for y, line in enumerate(image):
    old = np.rint(columns + amount * (y + 0.5)).astype(int)
    is_inside = old < len(columns)
    result[y, is_inside] = line[old[is_inside]]
  return result


def shifted(image, pixels):
  """Returns the image moved to the right, zero where it was."""
  return np.pad(image, ((0, 0), (pixels, 0), (0, 0)))[:, :-pixels]


def softened(image):
  """Returns the mean of the image and its blurred version."""
  size = len(image) - 2
  places = [(y, x) for y in range(3) for x in range(3)]
  box = sum(image[y : y + size, x : x + size] for y, x in places)
  result, inner = image.copy(), image[1:-1, 1:-1]
  result[1:-1, 1:-1] = (inner + np.round((box + 4 * inner) / 13)) / 2
  return result


def test_operations_compute_their_definitions():
  image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  picture, pixels = Image.fromarray(image), image.astype(float)
  turned = image.transpose(1, 0, 2)
  gray = np.floor(pixels @ [0.2989, 0.587, 0.114])[..., None]
  expected = {
    ('Identity', 0.0): image,
    ('ShearX', 0.617): sheared(image, 0.617),
    ('ShearY', 0.617): sheared(turned, 0.617).transpose(1, 0, 2),
    ('TranslateX', 7.4): shifted(image, 7),
    ('TranslateY', 7.4): shifted(turned, 7).transpose(1, 0, 2),
    ('Rotate', 90.0): np.rot90(image),
    ('Brightness', 0.5): np.minimum(pixels * 1.5, 255),
    ('Color', -0.5): (pixels + gray) / 2,
    ('Contrast', -0.5): (pixels + gray.mean()) / 2,
    ('Sharpness', -0.5): softened(pixels),
    ('Posterize', 3.0): ImageOps.posterize(picture, 3),
    ('Solarize', 0.503): ImageOps.solarize(picture, 129),
    ('AutoContrast', 0.0): ImageOps.autocontrast(picture),
    ('Equalize', 0.0): ImageOps.equalize(picture),
    ('Invert', 0.0): 255 - image,
  }
  names, magnitudes = zip(*expected, strict=True)
  assert names == OPERATIONS
  found = apply_each(image, names, magnitudes)
  for name, ours, other in zip(names, found, expected.values(), strict=True):
    assert np.abs(ours - np.asarray(other, float)).max() <= 1, name


@pytest.mark.parametrize('interpolation', INTERPOLATIONS)
def test_zero_magnitude_leaves_the_image_unchanged(interpolation):
  image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  names = OPERATIONS[:12]
  least = {'Posterize': 8.0, 'Solarize': 1.01}
  magnitudes = [least.get(name, 0.0) for name in names]
  for name, found in zip(
    names, apply_each(image, names, magnitudes, interpolation), strict=True
  ):
    np.testing.assert_array_equal(found, image, err_msg=name)


@pytest.mark.parametrize('channels', [1, 3])
def test_counting_and_comparing_give_the_same_counts(channels):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, 28, 32, channels), np.uint8)
  images[1:3] //= 5
  images[3] = 77
  expected = [
    [
      np.searchsorted(np.sort(x[..., c].ravel()), np.arange(256))
      for c in range(channels)
    ]
    for x in images
  ]
  for count in (operations.below_by_counting, operations.below_by_comparing):
    np.testing.assert_array_equal(jax.jit(count)(jnp.array(images)), expected)
