"""Random parameters against the papers and torchvision's transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data.augment import autoaugment, policies
from resnet.data.augment.autoaugment import AutoAugment
from resnet.data.augment.operations import OPERATIONS, apply_operations
from resnet.data.augment.policies import RandomOperations
from tests.data.device import assert_images_depend_on_their_keys_only, keys_of

rand = functools.partial(
  RandomOperations, num_layers=2, magnitude=9, interpolation='nearest'
)
RAND, TRIVIAL = rand(), rand(num_layers=1, magnitude=None)
SIGNED = OPERATIONS[1:10]


def draw(policy, count, height=50, width=70):
  """Returns kinds and magnitudes of so many images."""
  drawn = jax.jit(lambda k: policy.draw(k, height, width))(keys_of(count))
  return map(np.array, drawn)


def test_magnitudes_rise_to_those_of_the_papers():
  # Cubuk et al. 2019, Table 6; Mueller and Hutter 2021, Table 1 (wide).
  for is_wide, shear, x, y, angle, color, bits in (
    (False, 0.3, 150 / 331 * 70, 150 / 331 * 50, 30, 0.9, 4),
    (True, 0.99, 32, 32, 135, 0.99, 2),
  ):
    table = policies.magnitude_table(OPERATIONS, 31, 50, 70, is_wide=is_wide)
    last = [float(values[-1]) for values in table.values()]
    most = [0, shear, shear, x, y, angle, *[color] * 4, bits, 0, 0, 0, 0]
    np.testing.assert_allclose(last, most, rtol=1e-6)
    np.testing.assert_allclose(table['Rotate'], np.linspace(0, angle, 31))
    np.testing.assert_allclose(table['Solarize'], np.linspace(1, 0, 31))
    rounded = np.round(np.linspace(0, 8 - bits, 31))
    np.testing.assert_array_equal(table['Posterize'], 8 - rounded)


@pytest.mark.parametrize('data', ['imagenet', 'cifar'])
def test_the_policies_are_those_of_torchvision(data):
  v2 = pytest.importorskip('torchvision.transforms.v2')
  name = {'imagenet': 'IMAGENET', 'cifar': 'CIFAR10'}[data]
  theirs = v2.AutoAugment(v2.AutoAugmentPolicy[name])._policies
  ours = [
    tuple((OPERATIONS[k], tenths / 10, level) for k, tenths, level in policy)
    for policy in autoaugment.policies(data).tolist()
  ]
  assert ours == [
    tuple((k, probability, level or 0) for k, probability, level in policy)
    for policy in theirs
  ]


@pytest.mark.parametrize('policy', [RAND, TRIVIAL])
def test_operations_magnitudes_and_signs_are_uniform(policy):
  kinds, magnitudes = draw(policy, 20_000)
  chosen = np.bincount(kinds, minlength=14)
  assert len(chosen) == 14 and stats.chisquare(chosen).pvalue > 0.001
  is_wide = policy.magnitude is None
  table = policies.magnitude_table(OPERATIONS, 31, 50, 70, is_wide=is_wide)
  for i, name in enumerate(OPERATIONS[:14]):
    found = magnitudes[kinds == i]
    expected = table[name] if is_wide else table[name][[9]]
    if name in SIGNED:
      negative = int((found < 0).sum())
      total = int((found != 0).sum())
      assert stats.binomtest(negative, total).pvalue > 1e-4, name
      found = np.abs(found)
    values, counts = np.unique(found, return_counts=True)
    theirs, weights = np.unique(expected, return_counts=True)
    np.testing.assert_array_equal(values, theirs)
    weights = weights / weights.sum() * counts.sum()
    assert len(values) == 1 or stats.chisquare(counts, weights).pvalue > 1e-4


# Nine of timm's ten are 27 of 30; this and half a one above are cut off there.
LIKE_TIMM = rand(magnitude=27, magnitude_std=1.5, operation_probability=0.5)


def test_magnitudes_are_normal_and_some_operations_are_skipped():
  count = 100_000
  kinds, magnitudes = draw(LIKE_TIMM, count)
  chances = np.full(14, 0.5 / 14)
  chances[0] += 0.5
  done = np.bincount(kinds, minlength=14)
  assert stats.chisquare(done, chances * count).pvalue > 0.001
  levels = np.random.default_rng(0).normal(27.0, 1.5, 20_000).clip(0, 30)
  angles = magnitudes[kinds == OPERATIONS.index('Rotate')]
  assert stats.binomtest(int((angles < 0).sum()), len(angles)).pvalue > 1e-4
  assert stats.ks_2samp(np.abs(angles), levels).pvalue > 0.001  # 30 degrees.
  bits = magnitudes[kinds == OPERATIONS.index('Posterize')]
  assert set(bits) == {4.0, 5.0}
  # The table has 5 bits up to number 26, and 4 from 27 on.
  assert abs(np.mean(bits == 4) - np.mean(levels >= 26.5)) < 0.03


@pytest.mark.parametrize('data', ['imagenet', 'cifar'])
def test_autoaugment_draws_policies_with_their_probabilities(data):
  count, table = 40_000, autoaugment.policies(data)
  policy = AutoAugment(data=data, interpolation='nearest')
  kinds, magnitudes = draw(policy, count)
  for layer in (0, 1):
    chosen, tenths, _ = table[:, layer].T
    chances = np.bincount(chosen, tenths / 250, len(OPERATIONS))
    chances[0] = 1 - chances[1:].sum()
    counts = np.bincount(kinds[layer], minlength=len(OPERATIONS))
    may_be = chances > 0
    assert not counts[~may_be].any()
    expected = chances[may_be] * count
    assert stats.chisquare(counts[may_be], expected).pvalue > 1e-4
  # The two operations of a policy come together.
  both = kinds[:, kinds.all(axis=0)].T.tolist()
  pairs = [policy[:, 0] for policy in table if policy[:, 1].all()]
  assert set(map(tuple, both)) == set(map(tuple, np.array(pairs).tolist()))
  space = policies.magnitude_table(OPERATIONS, 10, 50, 70, is_wide=False)
  done = kinds.ravel().tolist(), np.abs(magnitudes).ravel().tolist()
  assert {pair for pair in zip(*done, strict=True) if pair[0]} == {
    (kind, float(space[OPERATIONS[kind]][level]))
    for kind, tenths, level in table.reshape(-1, 3).tolist()
    if tenths
  }
  signed = magnitudes[(kinds > 0) & (kinds < 10) & (magnitudes != 0)]
  assert stats.binomtest(int((signed < 0).sum()), len(signed)).pvalue > 1e-4


def images_of_16():
  rng = np.random.default_rng(0)
  return jnp.array(rng.integers(0, 256, (16, 12, 10, 3), np.uint8))


def test_operations_on_an_image_depend_on_its_key_only():
  policy = rand(num_layers=1, magnitude_std=3.0, operation_probability=0.5)
  assert_images_depend_on_their_keys_only(policy, images_of_16())


def test_autoaugment_applies_the_operations_that_it_draws():
  policy = AutoAugment(data='cifar', interpolation='bilinear')
  images = images_of_16()
  found = jax.jit(policy)(images, keys_of(16))
  apply = jax.jit(
    lambda *args: apply_operations(*args, interpolation='bilinear')
  )
  for kinds, magnitudes in zip(*draw(policy, 16, 12, 10), strict=True):
    images = apply(images, kinds, magnitudes)
  np.testing.assert_array_equal(found, images)
