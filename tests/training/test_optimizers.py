"""SGD against its formula, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet.errors import InputError
from resnet.models import create_model
from resnet.training.optimizers import create_optimizer, decay_mask

FIELDS = {
  'name': 'sgd',
  'momentum': 0.9,
  'nesterov': False,
  'weight_decay': 0.01,
  'decay_rule': 'all',
}
RATES = [0.1, 0.2, 0.05]


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('decay_rule', ['all', 'kernels'])
def test_three_updates_follow_the_formula(nesterov, decay_rule):
  rng = np.random.default_rng(0)
  params = {'kernel': rng.normal(size=(2, 3)), 'bias': rng.normal(size=3)}
  grads = [
    {name: rng.normal(size=value.shape) for name, value in params.items()}
    for _ in RATES
  ]

  def schedule(step):
    return jnp.asarray(RATES, jnp.float32)[step]

  tx = create_optimizer(
    schedule, **{**FIELDS, 'nesterov': nesterov, 'decay_rule': decay_rule}
  )
  ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  state = tx.init(ours)
  velocity = dict.fromkeys(params, 0.0)
  for rate, grad in zip(RATES, grads, strict=True):
    updates, state = tx.update(
      jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad), state, ours
    )
    ours = optax.apply_updates(ours, updates)
    for name in params:
      decays = decay_rule == 'all' or name == 'kernel'
      g = grad[name] + 0.01 * decays * params[name]
      velocity[name] = 0.9 * velocity[name] + g
      step = g + 0.9 * velocity[name] if nesterov else velocity[name]
      params[name] = params[name] - rate * step
  for name in params:
    np.testing.assert_allclose(ours[name], params[name], rtol=1e-5, atol=1e-6)


def test_kernels_decay_and_scales_and_biases_do_not():
  model = create_model('cifar_resnet20')
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)[
      'params'
    ]
  )
  mask = decay_mask(params, 'kernels')
  by_name = {
    path[-1].key: set() for path, _ in jax.tree_util.tree_leaves_with_path(mask)
  }
  for path, decays in jax.tree_util.tree_leaves_with_path(mask):
    by_name[path[-1].key].add(decays)
  assert by_name == {'kernel': {True}, 'scale': {False}, 'bias': {False}}
  assert all(jax.tree.leaves(decay_mask(params, 'all')))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'adam'}, "'adam' is none of 'sgd'"),
    ({'decay_rule': 'some'}, 'all, kernels'),
    ({'momentum': 1.0}, 'momentum'),
    ({'weight_decay': -1.0}, 'weight_decay=-1.0'),
    ({'weight_decay': float('nan')}, 'weight_decay=nan'),
  ],
)
def test_bad_fields_are_named(changes, message):
  with pytest.raises(InputError, match=message):
    create_optimizer(optax.constant_schedule(0.1), **{**FIELDS, **changes})
