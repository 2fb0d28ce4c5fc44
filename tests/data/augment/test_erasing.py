"""Random erasing: what Zhong et al. 2020 and torchvision say it does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from resnet.data.augment.erasing import RandomErasing
from tests.data.device import keys_of

AREA, ASPECT = (0.02, 1 / 3), (0.3, 10 / 3)
make = functools.partial(
  RandomErasing, probability=1.0, area=AREA, aspect=ASPECT, fill='noise'
)


def boxes_of(shape, count=4000, **fields):
  draw = jax.jit(lambda keys: make(**fields).boxes(keys, *shape))
  return np.array(draw(keys_of(count)))


def test_a_box_that_does_not_fit_is_drawn_again():
  sides = boxes_of((40, 90), area=(0.02, 1.0))[:, 2:]
  h, w = sides[sides.any(axis=1)].T
  # The definition, all at once: without rounding and without a last try.
  rng = np.random.default_rng(1)
  area = 40 * 90 * rng.uniform(0.02, 1.0, 40_000)
  aspect = np.exp(rng.uniform(*np.log(ASPECT), 40_000))
  fits = (area * aspect < 40**2) & (area / aspect < 90**2)
  assert 0.3 < fits.mean() < 0.9
  assert stats.ks_2samp(h * w, area[fits]).pvalue > 0.001
  assert stats.ks_2samp(h / w, aspect[fits]).pvalue > 0.001


def test_area_and_place_are_uniform_and_aspect_log_uniform():
  boxes = boxes_of((256, 256), area=(0.05, 0.2), probability=0.75)
  is_erased = boxes[:, 2] > 0
  assert stats.binomtest(int(is_erased.sum()), 4000, 0.75).pvalue > 0.001
  top, left, h, w = boxes[is_erased].T
  share = h * w / 256**2
  assert share.min() > 0.048 and share.max() < 0.204
  uniform = stats.uniform(0.05, 0.15)
  assert stats.kstest(share, uniform.cdf).pvalue > 0.001
  low, high = np.log(ASPECT)
  aspect = stats.uniform(low, high - low)
  assert stats.kstest(np.log(h / w), aspect.cdf).pvalue > 0.001
  # The place is uniform among those where the box is inside.
  for start, length in ((top, h), (left, w)):
    assert start.min() == 0 and (start + length).max() == 256
    share = (start + 0.5) / (256 - length + 1)
    assert stats.kstest(share, stats.uniform().cdf).pvalue > 0.001


def test_a_box_that_does_not_fit_erases_nothing():
  boxes = boxes_of((6, 240), 100, area=(0.9, 1.0), aspect=(1.0, 1.0))
  assert not boxes.any()


def fill_of(images, fill, mean, std):
  """Returns the values in the boxes [N, 3]; asserts that others stay."""
  erase = jax.jit(lambda *args: make(fill=fill)(*args, mean=mean, std=std))
  found = np.array(erase(jnp.array(images), keys_of(len(images))))
  assert found.dtype == np.float32
  is_filled = (found != images).any(-1)
  rows, columns = is_filled.any(2), is_filled.any(1)
  assert (is_filled == rows[:, :, None] & columns[:, None, :]).all()
  assert is_filled.any((1, 2)).all()
  return found[is_filled]


def test_the_box_is_filled_with_noise_or_the_mean():
  images = np.full((400, 24, 20, 3), 200, np.uint8)
  mean, std = (100.0, 110.0, 120.0), (10.0, 20.0, 30.0)
  noise = (fill_of(images, 'noise', mean, std) - mean) / std
  assert stats.kstest(noise.ravel()[:20_000], stats.norm.cdf).pvalue > 0.001
  assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02
  images = images.astype(np.float32)  # As if normalised: the mean is 0.
  assert not fill_of(images, 'mean', (0.0,) * 3, (1.0,) * 3).any()
