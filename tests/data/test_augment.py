"""Augmentation on the device against that of the host."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data import augment, transforms
from resnet.data.augment import DeviceAugment
from tests.data.in_memory import smooth_image

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def keys_of(count, seed=0, step=0):
  return augment.example_keys(seed, jnp.int32(step), count)


def host_boxes(height, width, count):
  draws = np.random.default_rng(0).random((count, transforms.BOX_DRAWS))
  return np.array(
    [
      transforms.random_box(height, width, numbers, area=AREA, aspect=ASPECT)
      for numbers in draws.tolist()
    ]
  )


@pytest.mark.parametrize('shape', [(256, 256), (150, 256), (256, 180)])
def test_boxes_have_the_distribution_of_the_host(shape):
  boxes = jax.jit(
    lambda keys: augment.random_boxes(keys, *shape, area=AREA, aspect=ASPECT)
  )(keys_of(4000))
  ours, theirs = np.array(boxes).T, host_boxes(*shape, 4000).T
  top, left, h, w = ours
  assert top.min() == left.min() == 0
  assert (top + h).max() == shape[0] and (left + w).max() == shape[1]
  for pair in (
    *zip(ours, theirs, strict=True),
    (h * w, theirs[2] * theirs[3]),
    (w / h, theirs[3] / theirs[2]),
  ):
    assert stats.ks_2samp(*pair).pvalue > 0.001


def test_an_extreme_image_gives_its_centre():
  boxes = augment.random_boxes(
    keys_of(20), 6, 240, area=(0.5, 1.0), aspect=ASPECT
  )
  assert set(map(tuple, np.array(boxes).tolist())) == {(0, 116, 6, 8)}


def test_crops_are_resized_as_on_the_host():
  rng = np.random.default_rng(0)
  boxes = host_boxes(90, 70, 40)
  noise = rng.integers(0, 256, (20, 90, 70, 3), np.uint8)
  smooth = np.stack([smooth_image(90, 70)] * 20)
  images = np.concatenate([noise, smooth])
  found = np.array(
    augment.crop_and_resize(jnp.array(images), jnp.array(boxes, jnp.int32), 48)
  )
  assert found.dtype == np.uint8 and found.shape == (40, 48, 48, 3)
  for image, box, crop in zip(images, boxes, found, strict=True):
    expected = transforms.resize(transforms.Box(*box).of(image), 48, 48)
    assert np.abs(crop.astype(int) - expected).max() <= 1


# Of 90 x 70: enlarged to 48 pixels, shrunk, one of each, at a corner, whole.
BOXES = [
  (10, 5, 20, 17),
  (3, 8, 77, 60),
  (31, 2, 30, 66),
  (4, 40, 80, 21),
  (42, 22, 48, 48),
  (87, 66, 3, 4),
  (0, 0, 90, 70),
  (0, 0, 1, 70),
]


@pytest.mark.parametrize('kind', ['noise', 'smooth'])
@pytest.mark.parametrize('channels', [1, 3])
def test_crops_and_mirrors_are_those_of_torchvision(
  channels, kind, monkeypatch
):
  torch = pytest.importorskip('torch')
  functional = pytest.importorskip('torchvision.transforms.v2').functional
  rng = np.random.default_rng(0)
  image = smooth_image(90, 70)[..., :channels]
  if kind == 'noise':
    image = rng.integers(0, 256, image.shape, np.uint8)
  # Each box eight times, so that each is mirrored, and is not.
  boxes = np.repeat(BOXES, 8, axis=0)
  monkeypatch.setattr(
    augment, 'random_boxes', lambda *_, **__: jnp.array(boxes, jnp.int32)
  )
  device = DeviceAugment(
    size=48,
    crop='random_resized',
    area=AREA,
    aspect=ASPECT,
    padding=0,
    flip=True,
  )
  images = jnp.array(np.repeat(image[None], len(boxes), 0))
  found = np.array(jax.jit(device)(images, keys_of(len(boxes)))).astype(int)
  found = found.reshape(len(BOXES), 8, 48, 48, channels)
  pixels = torch.tensor(image.transpose(2, 0, 1))
  for box, crops in zip(BOXES, found, strict=True):
    crop = functional.resized_crop(pixels, *box, [48, 48], antialias=True)
    shares = []
    for expected in (crop, functional.horizontal_flip(crop)):
      distance = np.abs(crops - expected.numpy().transpose(1, 2, 0))
      shares.append(np.mean(distance <= 1, axis=(1, 2, 3)))
    plain, mirrored = np.array(shares) >= 0.995
    assert (plain ^ mirrored).all(), (box, shares)
    assert plain.any() and mirrored.any(), box


def test_every_window_and_half_of_the_mirrors_are_taken():
  image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
  images = jnp.array(np.repeat(image, 4000, 0))
  found = augment.pad_and_crop(images, keys_of(4000), padding=2)
  windows, counts = np.unique(np.array(found), axis=0, return_counts=True)
  assert len(windows) == 25
  assert stats.chisquare(counts).pvalue > 0.01
  flipped = np.array(augment.random_flip(images, keys_of(4000)))
  is_flipped = (flipped == image[:, :, ::-1]).all((1, 2, 3))
  assert (is_flipped | (flipped == image).all((1, 2, 3))).all()
  assert stats.binomtest(int(is_flipped.sum()), 4000).pvalue > 0.01


@pytest.mark.parametrize('crop', ['random_resized', 'pad', 'none'])
def test_an_image_depends_on_its_seed_step_and_row_only(crop):
  size = 12 if crop == 'random_resized' else 16
  device = DeviceAugment(
    size=size, crop=crop, area=AREA, aspect=ASPECT, padding=2, flip=True
  )
  rng = np.random.default_rng(0)
  images = jnp.array(rng.integers(0, 256, (16, 16, 16, 3), np.uint8))
  run = jax.jit(device)
  whole = np.array(run(images, keys_of(16)))
  assert whole.shape == (16, size, size, 3) and whole.dtype == np.uint8
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  sharded = jax.jit(
    lambda x, step: device(x, augment.example_keys(0, step, 16)),
    in_shardings=(sharding, None),
    out_shardings=sharding,
  )
  compiled = sharded.lower(images, jnp.int32(0)).compile()
  np.testing.assert_array_equal(
    np.array(compiled(jax.device_put(images, sharding), jnp.int32(0))), whole
  )
  for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective'):
    assert word not in compiled.as_text()
  np.testing.assert_array_equal(
    np.array(run(images[:4], keys_of(16)[:4])), whole[:4]
  )
  for other in (keys_of(16, seed=1), keys_of(16, step=1)):
    assert (np.array(run(images, other)) != whole).any()


def test_the_mean_of_many_crops_is_that_of_the_host():
  image = smooth_image(32, 32)
  fields = {
    'size': 16,
    'crop': 'random_resized',
    'area': AREA,
    'aspect': ASPECT,
    'padding': 0,
    'flip': True,
  }
  count = 3000
  ours = np.array(
    jax.jit(DeviceAugment(**fields))(
      jnp.array(np.repeat(image[None], count, 0)), keys_of(count)
    )
  )
  host = transforms.TrainTransform(**fields)
  draws = np.random.default_rng(1).random((count, host.num_draws)).tolist()
  theirs = np.stack([host(image, host.box(32, 32, d), d) for d in draws])
  spread = theirs.std(0) * math.sqrt(2 / count)
  assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread + 0.2).all()
