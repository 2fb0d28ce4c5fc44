"""Mixup and cutmix by hand, and their draws against the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data.augment import mixing
from resnet.data.augment.mixing import Mixing
from resnet.training.sharding import create_sharding

make = functools.partial(
  Mixing, mixup_alpha=0.0, cutmix_alpha=0.0, probability=1.0, cutmix_share=0.5
)


def draws(mix, height, width, count=2000):
  """Returns the shares of many batches, [count, height, width]."""
  keys = jax.random.split(jax.random.key(0), count)

  def draw(key):
    return mix.shares(mix.draw(key, height, width), height, width)

  return np.array(jax.jit(jax.vmap(draw))(keys))


def batch(size=6, num_classes=5):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (size, 14, 11, 3), np.uint8)
  return images, rng.integers(0, num_classes, size, np.int32)


def test_images_and_targets_are_mixed_with_the_mirrored_row():
  images, labels = batch()
  # The sides of the box are sqrt(0.75) of 14 x 11 pixels, truncated: 12 x 9.
  # Around row 2 it is cut off at the upper edge.
  middle = (jnp.int32(2), jnp.int32(5))
  inside = np.zeros((14, 11), np.float32)
  inside[:8, 1:10] = 1
  found = mixing.cutmix_mask(jnp.float32(0.25), middle, 14, 11)
  np.testing.assert_array_equal(found, inside)
  one_hot = np.eye(5)[labels]
  for shares in (np.full((14, 11), 0.25, np.float32), 1 - inside):
    own = shares[..., None]
    mixed = mixing.mix_rows(jnp.array(images), jnp.array(own)[None])
    np.testing.assert_allclose(
      mixed, images * own + images[::-1] * (1 - own), atol=1e-4
    )
    share = shares.mean()
    targets = mixing.mix_rows(jax.nn.one_hot(labels, 5), jnp.array([[share]]))
    np.testing.assert_allclose(
      targets, one_hot * share + one_hot[::-1] * (1 - share), atol=1e-6
    )


@pytest.fixture(scope='module')
def shares_of_both():
  """Shares of 4,000 batches of 40 x 30 pixels, and which are by mixup."""
  mix = make(
    mixup_alpha=0.4, cutmix_alpha=1.0, probability=0.8, cutmix_share=0.3
  )
  shares = draws(mix, 40, 30, count=4000)
  # Cutmix keeps or replaces pixels. (At alpha 0.4 few shares round to 1.)
  is_whole = np.isin(shares, (0, 1)).all((1, 2))
  return shares, ~is_whole


def test_mixup_and_cutmix_have_the_configured_frequencies(shares_of_both):
  shares, is_mixup = shares_of_both
  assert stats.binomtest(int(is_mixup.sum()), 4000, 0.8 * 0.7).pvalue > 0.001
  is_kept = (shares == 1).all((1, 2))
  # (A box of less than a pixel mixes nothing: about one of 500.)
  is_cutmix = ~is_mixup & ~is_kept
  assert stats.binomtest(int(is_cutmix.sum()), 4000, 0.8 * 0.3).pvalue > 0.001
  assert not make(mixup_alpha=1.0, probability=0.0).is_on


def test_the_share_of_mixup_has_a_beta_distribution(shares_of_both):
  shares, is_mixup = shares_of_both
  shares = shares[is_mixup]
  assert (shares == shares[:, :1, :1]).all()
  result = stats.kstest(shares[:, 0, 0], stats.beta(0.4, 0.4).cdf)
  assert result.pvalue > 0.001


def test_the_box_of_cutmix_has_the_size_and_place_of_the_paper(shares_of_both):
  shares, is_mixup = shares_of_both
  is_kept = (shares == 1).all((1, 2))
  inside = 1 - shares[~is_mixup & ~is_kept]
  rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
  np.testing.assert_array_equal(rows * columns, inside.sum((1, 2)))
  # Alpha 1: the area is uniform, and then cut off at the edges.
  rng = np.random.default_rng(0)
  side = np.sqrt(1 - rng.random(20_000))

  def expected(length):
    middle = rng.integers(0, length, len(side))
    size = (length * side).astype(int)
    ends = np.minimum(middle + (size + 1) // 2, length)
    return ends - np.maximum(middle - size // 2, 0)

  expected_rows, expected_columns = expected(40), expected(30)
  is_box = (expected_rows > 0) & (expected_columns > 0)
  for found, theirs in ((rows, expected_rows), (columns, expected_columns)):
    assert stats.ks_2samp(found, theirs[is_box]).pvalue > 0.001
  # Uniform centres: symmetric, and the middle is covered most.
  cover = inside.mean(0)
  for mirrored in (cover[::-1], cover[:, ::-1]):
    assert np.abs(cover - mirrored).max() < 0.1
  assert cover[20, 15] > cover[0, 0] + 0.1


def test_main_labels_have_the_larger_share():
  images, labels = map(jnp.array, batch(size=16, num_classes=50))

  @jax.jit
  def mix(key):
    mixed = make(mixup_alpha=1.0)(images, labels, 50, key)
    return mixed['target'], mixed['label']

  for seed in range(20):
    targets, main_labels = mix(jax.random.key(seed))
    np.testing.assert_array_equal(main_labels, np.argmax(targets, axis=1))
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, rtol=1e-6)
    assert main_labels.dtype == jnp.int32


def test_groups_are_mixed_separately_and_stay_on_their_devices():
  mix = make(mixup_alpha=1.0, cutmix_alpha=1.0, group_size=2)
  images, labels = batch(16)
  sharding = create_sharding()
  call = jax.jit(
    lambda *args: mix(*args, 5, jax.random.key(0), sharding.replicate),
    in_shardings=sharding.batch,
    out_shardings=sharding.batch,
  )
  for kind in ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce'):
    assert kind not in call.lower(images, labels).compile().as_text()
  found = call(images, labels)
  for group in range(8):
    pair = slice(2 * group, 2 * group + 2)
    # Both rows of a pair have the sum of its images.
    np.testing.assert_allclose(
      np.sum(found['image'][pair], axis=0),
      np.sum(images[pair], axis=0, dtype=np.float32),
      atol=1e-3,
    )
  shares = np.max(found['target'], axis=1)
  assert len(np.unique(shares.round(4))) > 4
