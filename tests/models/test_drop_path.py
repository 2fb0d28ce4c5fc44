"""Drop path and dropout: what Huang et al. 2016 and the keys promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.models import abstract_variables, create_model, layers
from tests.networks import draw_variables


def forward(model, variables, images, seed=None):
  """Returns logits; in training where there is a seed."""
  if seed is None:
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(
      variables, images
    )
  # Running statistics, so that images do not see each other.
  model = model.clone(frozen_bn=True)
  return jax.jit(
    lambda v, x, key: model.apply(v, x, train=True, rngs={'dropout': key})
  )(variables, images, jax.random.key(seed))


def images_of(count):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(count, 8, 8, 3)), jnp.float32)


def test_drop_path_drops_whole_residuals_and_keeps_the_mean():
  residual = jnp.ones((8000, 2, 3, 4))
  found = np.array(layers.drop_path(residual, 0.3, jax.random.key(0)))
  assert (found == found[:, :1, :1, :1]).all()
  is_kept = found[:, 0, 0, 0] > 0
  np.testing.assert_allclose(found[is_kept], 1 / 0.7, rtol=1e-6)
  assert stats.binomtest(int(is_kept.sum()), 8000, 0.7).pvalue > 0.001
  half = residual[:4].astype(jnp.bfloat16)
  assert layers.drop_path(half, 0.3, jax.random.key(0)).dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['cifar_resnet8', 'resnet18', 'resnet50'])
def test_drop_rates_grow_linearly_with_depth(name, monkeypatch):
  model = create_model(name, drop_path=0.6)
  variables = abstract_variables(model)
  rates, keys = [], []
  monkeypatch.setattr(
    layers,
    'drop_path',
    lambda residual, rate, key: (
      rates.append(rate) or keys.append(key) or residual
    ),
  )

  def train(variables, images):
    return model.apply(
      variables,
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )

  jax.eval_shape(train, variables, jnp.zeros((2, 8, 8, 3)))
  count = sum(model.stage_sizes)
  np.testing.assert_allclose(rates, 0.6 * np.arange(1, count + 1) / count)
  assert len(keys) == count


@pytest.mark.parametrize('field', ['drop_path', 'dropout'])
def test_evaluation_ignores_drop_path_and_dropout(field):
  plain, variables = draw_variables('cifar_resnet8', size=8, num_classes=10)
  model, images = plain.clone(**{field: 0.5}), images_of(16)
  own = abstract_variables(model)
  assert jax.tree.structure(variables) == jax.tree.structure(own)
  expected = forward(plain, variables, images)
  np.testing.assert_array_equal(forward(model, variables, images), expected)
  first, again, other = (
    forward(model, variables, images, seed) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (np.array(first) != np.array(other)).any()
  assert (np.array(first) != np.array(expected)).any()


def test_blocks_drop_images_independently():
  """Of images that are equal, those with equal choices have equal logits."""
  model, variables = draw_variables(
    'cifar_resnet8', size=8, num_classes=10, drop_path=0.5
  )
  images = jnp.repeat(images_of(1), 512, axis=0)
  logits = np.array(forward(model, variables, images, seed=0))
  found, counts = np.unique(logits.round(4), axis=0, return_counts=True)
  assert len(found) == 2**3
  # Kept by the blocks with probabilities 5/6, 4/6 and 3/6.
  kept = np.array([5 / 6, 4 / 6, 3 / 6])
  pairs = np.array(np.meshgrid(*np.stack([kept, 1 - kept], axis=1)))
  expected = pairs.reshape(3, -1).prod(0)
  assert (
    stats.chisquare(np.sort(counts), np.sort(expected) * 512).pvalue > 0.001
  )
