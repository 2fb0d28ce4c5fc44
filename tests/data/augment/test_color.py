"""Random colours against those of torchvision and of AlexNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data.augment.color import ColorJitter, Lighting
from tests.data.device import keys_of


def test_orders_and_factors_are_uniform():
  count, strength = 12_000, (0.4, 0.3, 0.2)
  policy = ColorJitter(strength=strength)
  kinds, magnitudes = map(np.array, jax.jit(policy.draw)(keys_of(count)))
  orders, counts = np.unique(kinds, axis=1, return_counts=True)
  assert orders.shape == (3, 6)
  assert stats.chisquare(counts).pvalue > 0.001
  for i in range(3):
    uniform = stats.uniform(-strength[i], 2 * strength[i])
    assert stats.kstest(magnitudes[kinds == i], uniform.cdf).pvalue > 0.001


def test_jitter_equals_torchvision_for_the_same_draws():
  torch = pytest.importorskip('torch')
  functional = pytest.importorskip('torchvision.transforms.v2').functional
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (24, 20, 22, 3), np.uint8)
  policy = ColorJitter(strength=(0.4, 0.4, 0.4))
  kinds, magnitudes = map(np.array, jax.jit(policy.draw)(keys_of(24)))
  found = np.array(jax.jit(policy)(jnp.array(images), keys_of(24)))
  adjust = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
  )
  differs = []
  for image, ours, order, factors in zip(
    images, found, kinds.T, magnitudes.T, strict=True
  ):
    x = torch.tensor(image.transpose(2, 0, 1))
    for kind, factor in zip(order, factors.tolist(), strict=True):
      x = adjust[kind](x, factor + 1)
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
