"""Augmentation on the device against that of the host."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data.augment import crop as crop_lib
from resnet.data.augment.crop import DeviceCrop
from resnet.data.host import transforms
from tests.data.device import assert_images_depend_on_their_keys_only, keys_of
from tests.data.in_memory import smooth_image

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
FIELDS = {'area': AREA, 'aspect': ASPECT, 'padding': 2, 'flip': True}


# In the second one a first box often does not fit, in the third none does.
@pytest.mark.parametrize(
  ('shape', 'area'),
  [((96, 96), AREA), ((150, 256), AREA), ((6, 240), (0.5, 1.0))],
)
def test_boxes_equal_those_of_the_host_for_the_same_draws(shape, area):
  keys = keys_of(400)
  count = transforms.BOX_DRAWS
  draws = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
  expected = [
    transforms.random_box(*shape, numbers, area=area, aspect=ASPECT)
    for numbers in np.array(draws).tolist()
  ]
  device = DeviceCrop(size=8, crop='random_resized', **{**FIELDS, 'area': area})
  found = jax.jit(lambda keys: device.boxes(keys, *shape))(keys)
  # (A side that is a half but for float32 may be rounded otherwise.)
  assert (np.array(found) == expected).all(axis=1).mean() > 0.98


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


def test_crops_are_resized_as_on_the_host():
  rng = np.random.default_rng(0)
  boxes = np.array(BOXES * 2, np.int32)
  noise = rng.integers(0, 256, (8, 90, 70, 3), np.uint8)
  images = np.concatenate([noise, np.stack([smooth_image(90, 70)] * 8)])
  cut = jax.jit(crop_lib.crop_and_resize, static_argnums=2)
  found = np.array(cut(jnp.array(images), jnp.array(boxes), 48))
  assert found.dtype == np.uint8 and found.shape == (16, 48, 48, 3)
  for image, box, crop in zip(images, boxes.tolist(), found, strict=True):
    expected = transforms.resize(transforms.Box(*box).cut(image), 48, 48)
    assert np.abs(crop.astype(int) - expected).max() <= 1


def test_every_window_occurs_and_half_of_the_images_are_flipped():
  image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
  images = jnp.array(np.repeat(image, 4000, 0))
  found = crop_lib.pad_and_crop(images, keys_of(4000), padding=2)
  windows, counts = np.unique(np.array(found), axis=0, return_counts=True)
  padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)))
  expected = [padded[y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
  assert {x.tobytes() for x in windows} == {x.tobytes() for x in expected}
  assert stats.chisquare(counts).pvalue > 0.01
  flipped = np.array(crop_lib.random_flip(images, keys_of(4000)))
  is_flipped = (flipped == image[:, :, ::-1]).all((1, 2, 3))
  assert (is_flipped | (flipped == image).all((1, 2, 3))).all()
  assert stats.binomtest(int(is_flipped.sum()), 4000).pvalue > 0.01


@pytest.mark.parametrize(
  ('crop', 'size'), [('random_resized', 12), ('pad', 16)]
)
def test_an_image_depends_on_its_key_only(crop, size):
  device = DeviceCrop(size=size, crop=crop, **FIELDS)
  rng = np.random.default_rng(0)
  images = jnp.array(rng.integers(0, 256, (16, 16, 16, 3), np.uint8))
  whole = assert_images_depend_on_their_keys_only(device, images)
  assert whole.shape == (16, size, size, 3)


def test_the_mean_of_many_crops_is_that_of_the_host():
  image, count = smooth_image(32, 32), 3000
  fields = {'size': 16, 'crop': 'random_resized', **FIELDS}
  images = jnp.array(np.repeat(image[None], count, 0))
  ours = np.array(jax.jit(DeviceCrop(**fields))(images, keys_of(count)))
  host = transforms.TrainTransform(**fields)
  draws = np.random.default_rng(1).random((count, host.num_draws)).tolist()
  theirs = np.stack([host(image, host.box(32, 32, d), d) for d in draws])
  spread = theirs.std(0) * math.sqrt(2 / count)
  assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread + 0.2).all()
