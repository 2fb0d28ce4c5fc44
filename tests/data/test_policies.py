"""Random parameters against those of torchvision's transforms."""

import collections
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data import augment, policies
from resnet.data.jitter import ColorJitter, Lighting
from resnet.data.operations import OPERATIONS
from resnet.data.policies import AutoAugment, RandomOperations
from resnet.errors import InputError


def rand(**fields):
  defaults = {
    'num_layers': 2,
    'magnitude': 9,
    'magnitude_std': 0.0,
    'operation_probability': 1.0,
    'interpolation': 'nearest',
  }
  return RandomOperations(**{**defaults, **fields})


RAND, TRIVIAL = rand(), rand(num_layers=1, magnitude=None)
SIGNED = OPERATIONS[1:10]


def keys_of(count, seed=0):
  return augment.example_keys(seed, jnp.int32(0), count)


def torchvision():
  return pytest.importorskip('torchvision.transforms.v2')


@pytest.mark.parametrize(
  ('policy', 'names'),
  [
    ('RandAugment', OPERATIONS[:14]),
    ('TrivialAugmentWide', OPERATIONS[:14]),
    ('AutoAugment', OPERATIONS[1:]),
  ],
)
@pytest.mark.parametrize('bins', [10, 31])
def test_magnitudes_are_those_of_torchvision(policy, names, bins):
  cls = getattr(torchvision(), policy)
  is_wide = policy == 'TrivialAugmentWide'
  ours = policies.space(OPERATIONS, bins, 50, 70, is_wide=is_wide)
  assert cls._AUGMENTATION_SPACE.keys() == set(names)
  for name, (make, is_signed) in cls._AUGMENTATION_SPACE.items():
    theirs = make(bins, 50, 70)
    theirs = np.zeros(bins) if theirs is None else theirs.numpy()
    if name == 'Posterize':
      np.testing.assert_array_equal(ours[name], theirs)
    np.testing.assert_allclose(ours[name], theirs, atol=1e-5, err_msg=name)
    assert is_signed == (name in SIGNED)


@pytest.mark.parametrize('data', ['imagenet', 'cifar'])
def test_the_policies_are_those_of_torchvision(data):
  v2 = torchvision()
  name = {'imagenet': 'IMAGENET', 'cifar': 'CIFAR10'}[data]
  theirs = v2.AutoAugment(v2.AutoAugmentPolicy[name])._policies
  ours = [
    tuple((OPERATIONS[k], tenths / 10, level) for k, tenths, level in policy)
    for policy in policies.policies(data).tolist()
  ]
  assert ours == [
    tuple((k, probability, level or 0) for k, probability, level in policy)
    for policy in theirs
  ]


@pytest.mark.parametrize('policy', [RAND, TRIVIAL])
def test_operations_magnitudes_and_signs_are_uniform(policy):
  count = 20_000
  kinds, magnitudes = map(
    np.array, jax.jit(lambda k: policy.draw(k, 50, 70))(keys_of(count))
  )
  chosen = np.bincount(kinds, minlength=14)
  assert len(chosen) == 14 and stats.chisquare(chosen).pvalue > 0.001
  is_wide = policy.magnitude is None
  table = policies.space(OPERATIONS, 31, 50, 70, is_wide=is_wide)
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


def test_magnitudes_are_normal_and_operations_left_out():
  count = 100_000
  kinds, magnitudes = map(
    np.array, jax.jit(lambda k: LIKE_TIMM.draw(k, 50, 70))(keys_of(count))
  )
  chances = np.full(14, 0.5 / 14)
  chances[0] += 0.5
  done = np.bincount(kinds, minlength=14)
  assert stats.chisquare(done, chances * count).pvalue > 0.001
  levels = np.random.default_rng(0).normal(27.0, 1.5, 20_000).clip(0, 30)
  table = policies.space(OPERATIONS, 31, 50, 70, is_wide=False)
  for i, name in enumerate(OPERATIONS[1:12], start=1):
    found = magnitudes[kinds == i]
    expected = np.interp(levels, np.arange(31), table[name])
    if name == 'Posterize':
      assert set(found) == {4.0, 5.0}
      share = np.mean(np.round(expected) == 4)
      assert abs(np.mean(found == 4) - share) < 0.03
      continue
    if name in SIGNED:
      assert stats.binomtest(int((found < 0).sum()), len(found)).pvalue > 1e-4
      found = np.abs(found)
    assert stats.ks_2samp(found, expected).pvalue > 0.001, name


@pytest.mark.parametrize(
  ('name', 'theirs', 'to_theirs'),
  [
    ('Rotate', 'Rotate', lambda x: x),
    ('ShearX', 'ShearX', lambda x: x),
    ('TranslateX', 'TranslateXRel', lambda x: x / 200),
    ('Color', 'ColorIncreasing', lambda x: 1 + x),
    ('Solarize', 'SolarizeIncreasing', lambda x: 256 * x),
  ],
)
def test_magnitudes_are_those_of_timm(name, theirs, to_theirs):
  auto_augment = pytest.importorskip('timm.data.auto_augment')
  kinds, magnitudes = map(
    np.array, jax.jit(lambda k: LIKE_TIMM.draw(k, 100, 200))(keys_of(100_000))
  )
  found = to_theirs(magnitudes[kinds == OPERATIONS.index(name)])
  operations = auto_augment.rand_augment_transform(
    'rand-m9-mstd0.5-inc1', {'translate_pct': 150 / 331}
  ).ops
  (operation,) = [op for op in operations if op.name == theirs]
  given = []
  operation.aug_fn = lambda _, value, **_options: given.append(value)
  random.seed(0)
  for _ in range(2 * len(found)):
    operation('image')
  assert stats.binomtest(len(given), 2 * len(found)).pvalue > 0.001
  if name == 'Solarize':  # Whole numbers there.
    found = 256 - np.floor(256 - found)
  assert stats.ks_2samp(found, given).pvalue > 0.001


@pytest.mark.parametrize(
  ('policy', 'theirs'),
  [
    (rand(num_layers=1), lambda v2: v2.RandAugment(1, 9)),
    (TRIVIAL, lambda v2: v2.TrivialAugmentWide()),
    *(
      (
        AutoAugment(data=ours, interpolation='nearest'),
        lambda v2, name=name: v2.AutoAugment(v2.AutoAugmentPolicy[name]),
      )
      for ours, name in (('imagenet', 'IMAGENET'), ('cifar', 'CIFAR10'))
    ),
  ],
)
def test_what_is_drawn_is_what_torchvision_draws(policy, theirs, monkeypatch):
  """Of each operation its magnitudes with their signs, as often as there."""
  torch = pytest.importorskip('torch')
  transform, given = theirs(torchvision()), []
  monkeypatch.setattr(
    transform,
    '_apply_image_or_video_transform',
    lambda x, name, magnitude, **_: given.append((name, magnitude)) or x,
  )
  torch.manual_seed(0)
  # (There are 589 wide magnitudes.)
  count = 12_000 if policy is TRIVIAL else 4000
  image = torch.zeros((3, 50, 70), dtype=torch.uint8)
  for _ in range(count):
    transform(image)
  kinds, magnitudes = jax.jit(lambda k: policy.draw(k, 50, 70))(keys_of(count))
  drawn = [
    (OPERATIONS[kind], magnitude)
    for kind, magnitude in zip(
      np.ravel(kinds).tolist(), np.ravel(magnitudes).tolist(), strict=True
    )
  ]
  # (Of AutoAugment, what is not done is not called there.)
  tables = [
    collections.Counter(
      (name, round(magnitude, 3) + 0.0)
      for name, magnitude in pairs
      if name != 'Identity'
    )
    for pairs in (drawn, given)
  ]
  cells = sorted(tables[0] | tables[1])
  counts = np.array([[table[cell] for cell in cells] for table in tables])
  assert counts.sum(0).min() > 3
  assert stats.chi2_contingency(counts).pvalue > 0.001
  # And as many are done.
  shares = counts.sum(1) / count
  assert abs(shares[0] - shares[1]) < 0.06


@pytest.mark.parametrize('data', ['imagenet', 'cifar'])
def test_auto_augment_takes_policies_and_probabilities(data):
  count = 40_000
  policy = AutoAugment(data=data, interpolation='nearest')
  kinds, magnitudes = map(
    np.array, jax.jit(lambda k: policy.draw(k, 50, 70))(keys_of(count))
  )
  expected = {}
  for (a, p, _), (b, q, _) in policies.policies(data).tolist():
    for first, chance in ((a, p / 10), (0, 1 - p / 10)):
      for second, other in ((b, q / 10), (0, 1 - q / 10)):
        pair = first, second
        expected[pair] = expected.get(pair, 0.0) + chance * other / 25
  pairs, counts = np.unique(kinds, axis=1, return_counts=True)
  found = dict(zip(map(tuple, pairs.T.tolist()), counts.tolist(), strict=True))
  expected = {pair: share for pair, share in expected.items() if share > 1e-9}
  assert found.keys() == expected.keys()
  order = sorted(expected)
  assert (
    stats.chisquare(
      [found[pair] for pair in order],
      [expected[pair] / sum(expected.values()) * count for pair in order],
    ).pvalue
    > 1e-4
  )
  table = policies.space(OPERATIONS, 10, 50, 70, is_wide=False)
  for i, name in enumerate(OPERATIONS[1:], start=1):
    levels = {
      level
      for pair in policies.policies(data).tolist()
      for kind, tenths, level in pair
      if kind == i and tenths
    }
    there = np.abs(magnitudes[kinds == i])
    assert {*np.unique(there).tolist()} == {
      float(table[name][level]) for level in levels
    }


@pytest.mark.parametrize(
  'policy',
  [
    RAND,
    rand(magnitude_std=3.0, operation_probability=0.5),
    TRIVIAL,
    AutoAugment(data='imagenet', interpolation='bilinear'),
    AutoAugment(data='cifar', interpolation='nearest'),
    ColorJitter(strength=(0.4, 0.4, 0.4, 0.5)),
    Lighting(strength=0.5),
  ],
)
def test_an_image_depends_on_its_key_only_and_stays_where_it_is(policy):
  rng = np.random.default_rng(0)
  images = jnp.array(rng.integers(0, 256, (16, 12, 10, 3), np.uint8))
  run = jax.jit(policy)
  whole = np.array(run(images, keys_of(16)))
  assert whole.shape == images.shape and whole.dtype == np.uint8
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  sharding = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('data')
  )
  compiled = (
    jax.jit(
      lambda x, seed: policy(x, augment.example_keys(0, seed, 16)),
      in_shardings=(sharding, None),
      out_shardings=sharding,
    )
    .lower(images, jnp.int32(0))
    .compile()
  )
  found = compiled(jax.device_put(images, sharding), jnp.int32(0))
  np.testing.assert_array_equal(np.array(found), whole)
  for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective'):
    assert word not in compiled.as_text()
  assert (np.array(run(images, keys_of(16, seed=1))) != whole).any()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: rand(num_layers=0),
      r'num_layers=0 is not in 1 \.\. 15',
    ),
    (
      lambda: rand(magnitude=31),
      r'magnitude=31 is not in 0 \.\. 30',
    ),
    (lambda: rand(magnitude_std=-1.0), 'magnitude_std=-1.0 is not a number'),
    (
      lambda: rand(operation_probability=1.5),
      r'operation_probability=1.5 is not in 0 \.\. 1',
    ),
    (
      lambda: AutoAugment(data='cifar', interpolation='cubic'),
      "interpolation='cubic' is none of nearest, bilinear",
    ),
    (lambda: ColorJitter(strength=(0.4, 2.0, 0.0, 0.1)), 'augment.jitter'),
    (lambda: ColorJitter(strength=(0.4, 0.4, 0.4, 0.6)), 'from 0 to 0.5'),
    (lambda: Lighting(strength=-0.1), 'augment.lighting=-0.1'),
  ],
)
def test_bad_values_are_named(make, message):
  with pytest.raises(InputError, match=message):
    make()
