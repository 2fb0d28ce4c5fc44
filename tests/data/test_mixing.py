"""Mixup and cutmix against timm's, and their draws against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data import mixing
from resnet.data.mixing import Mixing
from resnet.errors import InputError


def make(**fields):
  defaults = {
    'mixup_alpha': 0.0,
    'cutmix_alpha': 0.0,
    'probability': 1.0,
    'cutmix_share': 0.5,
  }
  return Mixing(**{**defaults, **fields})


def draws(mix, height, width, count=2000):
  """Returns the shares of many batches, [count, height, width]."""
  keys = jax.random.split(jax.random.key(0), count)
  draw = jax.jit(jax.vmap(lambda key: mix.draw(key, height, width)))
  return np.array(draw(keys))


def batch(size=6, num_classes=5):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (size, 14, 11, 3), np.uint8)
  return images, rng.integers(0, num_classes, size, np.int32)


@pytest.mark.parametrize('share', [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize('is_cutmix', [False, True])
def test_images_and_targets_are_those_of_timm(share, is_cutmix, monkeypatch):
  torch = pytest.importorskip('torch')
  timm_mixup = pytest.importorskip('timm.data.mixup')
  images, labels = batch()
  monkeypatch.setattr(np.random, 'beta', lambda *_: share)
  theirs = timm_mixup.Mixup(
    mixup_alpha=0.0 if is_cutmix else 1.0,
    cutmix_alpha=1.0 if is_cutmix else 0.0,
    label_smoothing=0.0,
    num_classes=5,
  )
  centers, real = [], np.random.randint

  def randint(*args, **kwargs):
    centers.append(real(*args, **kwargs))
    return centers[-1]

  monkeypatch.setattr(np.random, 'randint', randint)
  for seed in range(8):
    np.random.seed(seed)
    centers.clear()
    x, y = theirs(
      torch.tensor(images.transpose(0, 3, 1, 2)).float(),
      torch.tensor(labels),
    )
    shares = jnp.full((14, 11), share, jnp.float32)
    if is_cutmix:
      # (Where nothing is mixed, timm draws no place.)
      center = tuple(jnp.int32(c) for c in centers or (0, 0))
      shares = 1 - mixing.cutmix_mask(jnp.float32(share), center, 14, 11)
    found = mixing.mix_images(jnp.array(images), shares)
    np.testing.assert_allclose(
      found, x.numpy().transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-4
    )
    targets = mixing.mix_targets(jnp.array(labels), jnp.mean(shares), 5)
    np.testing.assert_allclose(targets, y.numpy(), atol=1e-6)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_the_share_of_mixup_has_a_beta_distribution(alpha):
  shares = draws(make(mixup_alpha=alpha), 3, 2)
  assert (shares == shares[:, :1, :1]).all()
  result = stats.kstest(shares[:, 0, 0], stats.beta(alpha, alpha).cdf)
  assert result.pvalue > 0.001


def test_the_box_of_cutmix_has_the_size_and_place_of_timm_and_the_paper(
  monkeypatch,
):
  inside = 1 - draws(make(cutmix_alpha=1.0), 40, 30)
  assert set(np.unique(inside)) == {0.0, 1.0}
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

  for found, length in ((rows, 40), (columns, 30)):
    assert stats.ks_2samp(found, expected(length)).pvalue > 0.001
  timm_mixup = pytest.importorskip('timm.data.mixup')
  monkeypatch.setattr(np, 'random', np.random.RandomState(0))
  boxes = [
    timm_mixup.rand_bbox((3, 40, 30), np.random.beta(1.0, 1.0))
    for _ in range(5000)
  ]
  top, bottom, left, right = np.array(boxes).T
  is_box = (bottom > top) & (right > left)
  assert stats.ks_2samp(rows, (bottom - top) * is_box).pvalue > 0.001
  assert stats.ks_2samp(columns, (right - left) * is_box).pvalue > 0.001
  # Uniform centres: symmetric, and the middle is covered most.
  cover = inside.mean(0)
  assert np.abs(cover - cover[::-1]).max() < 0.08
  assert cover[20, 15] > cover[0, 0] + 0.1


def test_both_are_taken_in_their_shares_and_others_are_left():
  shares = draws(
    make(mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.8, cutmix_share=0.3),
    8,
    8,
    count=4000,
  )
  is_constant = (shares == shares[:, :1, :1]).all((1, 2))
  is_mixup = is_constant & (shares[:, 0, 0] > 0) & (shares[:, 0, 0] < 1)
  assert stats.binomtest(int(is_mixup.sum()), 4000, 0.8 * 0.7).pvalue > 0.001
  # A box of less than two pixels may be empty, and one may cover all.
  is_cutmix = ~is_constant
  assert 0.8 * 0.3 * 0.85 < is_cutmix.mean() < 0.8 * 0.3 * 1.1
  assert not draws(make(mixup_alpha=1.0, probability=0.0), 2, 2).min() < 1


def timm_draws(height, width, count, **fields):
  """Returns what timm's batches keep, float32 [count], and if by cutmix."""
  timm_mixup = pytest.importorskip('timm.data.mixup')
  mix = timm_mixup.Mixup(**fields)
  kept, is_cutmix = [], []
  for _ in range(count):
    share, chosen = mix._params_per_batch()
    if chosen:
      # Of the box after it was cut off at the edges.
      _, share = timm_mixup.cutmix_bbox_and_lam((3, height, width), share)
    kept.append(share)
    is_cutmix.append(chosen)
  return np.array(kept, np.float32), np.array(is_cutmix)


@pytest.mark.parametrize(
  ('field', 'alpha', 'wrong'),
  [
    ('mixup_alpha', 0.2, 0.3),
    ('cutmix_alpha', 1.0, 1.4),
  ],
)
def test_shares_have_the_distribution_of_timm(field, alpha, wrong, monkeypatch):
  monkeypatch.setattr(np, 'random', np.random.RandomState(0))
  fields = {'mixup_alpha': 0.0, 'cutmix_alpha': 0.0, field: alpha}
  theirs, _ = timm_draws(16, 12, 4000, **fields)
  for value, is_right in ((alpha, True), (wrong, False)):
    ours = draws(make(**{field: value}), 16, 12, count=4000).mean((1, 2))
    pvalue = stats.ks_2samp(ours, theirs).pvalue
    assert (pvalue > 0.001) == is_right, (value, pvalue)


def test_mixup_cutmix_and_neither_are_as_frequent_as_in_timm(monkeypatch):
  monkeypatch.setattr(np, 'random', np.random.RandomState(0))
  alphas = {'mixup_alpha': 1.0, 'cutmix_alpha': 1.0}
  kept, is_cutmix = timm_draws(
    16, 12, 8000, prob=0.8, switch_prob=0.3, **alphas
  )
  # (A box of less than a pixel mixes nothing.)
  theirs = np.where(kept == 1, 0, np.where(is_cutmix, 1, 2))

  def ours(**fields):
    shares = draws(make(**alphas, **fields), 16, 12, count=8000)
    is_whole = np.isin(shares, (0, 1)).all((1, 2))
    is_kept = (shares == 1).all((1, 2))
    return np.where(is_kept, 0, np.where(is_whole, 1, 2))

  def pvalue(kinds):
    table = [np.bincount(x, minlength=3) for x in (kinds, theirs)]
    return stats.chi2_contingency(table).pvalue

  assert pvalue(ours(probability=0.8, cutmix_share=0.3)) > 0.001
  assert pvalue(ours(probability=0.84, cutmix_share=0.3)) < 0.001
  assert pvalue(ours(probability=0.8, cutmix_share=0.35)) < 0.001


def test_main_labels_have_the_larger_share():
  images, labels = batch(size=16, num_classes=50)
  for seed in range(20):
    mixed = make(mixup_alpha=1.0)(
      jnp.array(images), jnp.array(labels), 50, jax.random.key(seed)
    )
    np.testing.assert_array_equal(
      mixed.main_labels, np.argmax(mixed.targets, axis=1)
    )
    np.testing.assert_allclose(np.sum(mixed.targets, axis=1), 1, rtol=1e-6)
    assert mixed.main_labels.dtype == jnp.int32


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'mixup_alpha': -1.0}, 'augment.mixup_alpha=-1.0 is neither 0, for none,'),
    ({'mixup_alpha': 1e39}, r'mixup_alpha=1e\+39 .* nor in 1e-30 \.\. 1e\+30'),
    ({'cutmix_alpha': 1e39}, r'cutmix_alpha=1e\+39 .* nor in 1e-30'),
    ({'cutmix_alpha': 1e-39}, 'cutmix_alpha=1e-39 .* nor in 1e-30'),
    ({'cutmix_alpha': float('nan')}, 'augment.cutmix_alpha=nan'),
    ({'probability': 1.1}, r'augment.mix_probability=1.1 is not in 0 \.\. 1'),
    ({'cutmix_share': -0.1}, 'augment.cutmix_share=-0.1'),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    make(**fields)


@pytest.mark.parametrize(
  ('alpha', 'expected'), [(mixing._LEAST, {0.0, 1.0}), (mixing._MOST, {0.5})]
)
def test_shares_are_numbers_at_the_bounds_of_alpha(alpha, expected):
  """Of Beta(0, 0) and Beta(inf, inf), as float32 has it, they are not."""
  shares = draws(make(mixup_alpha=alpha), 1, 1, count=50)
  assert {round(float(share), 5) for share in shares.flat} == expected
