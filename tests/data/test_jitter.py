"""Random colours against those of torchvision and of AlexNet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data import augment
from resnet.data.jitter import ColorJitter, Lighting, shift_hue


def keys_of(count):
  return augment.example_keys(0, jnp.int32(0), count)


def torchvision():
  return pytest.importorskip('torchvision.transforms.v2')


@pytest.mark.parametrize('strength', [(0.4, 0.3, 0.2, 0), (0.4, 1, 0.2, 0.1)])
def test_jitter_has_the_factors_and_orders_of_torchvision(strength):
  torch, v2 = pytest.importorskip('torch'), torchvision()
  count = 12_000
  policy = ColorJitter(strength=strength)
  kinds, magnitudes = map(np.array, policy.draw(keys_of(count)))
  orders, counts = np.unique(kinds, axis=1, return_counts=True)
  size = len(policy.names)
  assert size == (4 if strength[3] else 3)
  assert orders.shape == (size, math.factorial(size))
  assert stats.chisquare(counts).pvalue > 0.001
  torch.manual_seed(0)
  jitters = v2.ColorJitter(*strength)
  drawn = [jitters.make_params([]) for _ in range(count)]
  theirs = [tuple(p['fn_idx'][p['fn_idx'] < size].tolist()) for p in drawn]
  assert set(theirs) == set(map(tuple, orders.T.tolist()))
  for i, name in enumerate(('brightness', 'contrast', 'saturation', 'hue')):
    expected = [p[f'{name}_factor'] for p in drawn]
    found = magnitudes[kinds == i]
    assert len(found) == (0 if expected[0] is None else count)
    if len(found):
      found = found + (name != 'hue')
      assert stats.ks_2samp(found, expected).pvalue > 0.001


def test_without_hue_the_draws_are_those_of_before_there_was_hue():
  policy = ColorJitter(strength=(0.4, 0.4, 0.4, 0.0))
  kinds, magnitudes = policy.draw(keys_of(4))
  assert kinds.tolist() == [[0, 0, 2, 2], [2, 2, 0, 0], [1, 1, 1, 1]]
  expected = [0.338899, 0.248104, -0.063240, 0.168858]
  np.testing.assert_allclose(magnitudes[0], expected, atol=1e-6)


def test_hue_is_that_of_torchvision_for_all_colours_and_shifts():
  torch, functional = pytest.importorskip('torch'), torchvision().functional
  levels = np.arange(0, 256, 15, dtype=np.uint8)
  colors = np.stack(np.meshgrid(levels, levels, levels), -1)
  colors = colors.reshape(1, len(levels), -1, 3)
  shifts = np.linspace(-0.5, 0.5, 41).astype(np.float32)
  found = np.array(
    jax.jit(shift_hue)(
      jnp.array(np.repeat(colors, len(shifts), axis=0)), jnp.array(shifts)
    )
  )
  assert found.dtype == np.uint8
  x = torch.tensor(colors[0].transpose(2, 0, 1))
  for ours, shift in zip(found, shifts.tolist(), strict=True):
    expected = functional.adjust_hue(x, shift).numpy().transpose(1, 2, 0)
    # Never more than one grey level, and seldom that.
    differs = np.abs(ours.astype(int) - expected)
    assert differs.max() <= 1 and differs.mean() < 0.01, shift
  np.testing.assert_array_equal(found[20], colors[0])
  gray = jnp.array(colors[..., :1])
  np.testing.assert_array_equal(shift_hue(gray, jnp.array([0.3])), gray)


@pytest.mark.parametrize('channels', [1, 3])
def test_jitter_is_that_of_torchvision_for_its_draws(channels):
  torch = pytest.importorskip('torch')
  functional = torchvision().functional
  adjust = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (24, 20, 22, channels), np.uint8)
  policy = ColorJitter(strength=(0.4, 0.4, 0.4, 0.5))
  kinds, magnitudes = map(np.array, policy.draw(keys_of(24)))
  found = np.array(jax.jit(policy)(jnp.array(images), keys_of(24)))
  differs = []
  for image, ours, order, factors in zip(
    images, found, kinds.T, magnitudes.T, strict=True
  ):
    x = torch.tensor(image.transpose(2, 0, 1))
    for kind, factor in zip(order, factors.tolist(), strict=True):
      x = adjust[kind](x, factor + (kind < 3))
    differs.append(np.abs(x.numpy().transpose(1, 2, 0) - ours.astype(int)) > 1)
  # (Of a dull pixel the next operation may make more of one grey level.)
  assert np.mean(differs) <= 0.005


# Of the colours of ImageNet, 0 to 1, as published with fb.resnet.torch
# (datasets/imagenet.lua: pca.eigval and pca.eigvec).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
  [
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
  ]
)


def test_lighting_adds_the_colours_of_fb_resnet_torch():
  count = 20_000
  images = jnp.full((count, 1, 1, 3), 128, jnp.uint8)
  # Ten times as strong as in recipes, or rounding would hide the small axes.
  found = np.array(Lighting(strength=1.0)(images, keys_of(count)))[:, 0, 0]
  alpha = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys_of(count))
  colors = (np.array(alpha, float) * EIGENVALUES) @ EIGENVECTORS.T
  expected = np.clip(np.round(128 + 255 * colors), 0, 255)
  assert np.abs(found - expected).max() <= 1
  # float32 rounds one in 100,000 to the other side.
  assert np.mean(found != expected) < 2e-4


def test_lighting_has_the_covariance_of_the_paper():
  images = jnp.full((20_000, 1, 1, 3), 128, jnp.uint8)
  found = np.array(Lighting(strength=0.1)(images, keys_of(20_000)))
  colors = found[:, 0, 0].astype(float) - 128
  variances = np.diag(np.square(25.5 * EIGENVALUES))
  expected = EIGENVECTORS @ variances @ EIGENVECTORS.T
  # Rounding adds the variance 1 / 12 of its own.
  expected += np.eye(3) / 12
  np.testing.assert_allclose(np.cov(colors.T), expected, rtol=0.06)
  assert np.abs(colors.mean(0)).max() < 0.15
