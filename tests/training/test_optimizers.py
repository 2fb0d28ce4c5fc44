"""Optimizers against their formulas and others', and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet.errors import InputError
from resnet.models import create_model
from resnet.training.lookahead import begin_at
from resnet.training.optimizers import create_optimizer, decay_mask

FIELDS = {
  'name': 'sgd',
  'momentum': 0.9,
  'nesterov': False,
  'trust_coefficient': 0.001,
  'b2': 0.999,
  'eps': 1e-6,
  'weight_decay': 0.01,
  'decay_rule': 'all',
}
RATES = [0.1, 0.2, 0.05]


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('decay_rule', ['all', 'kernels'])
def test_updated_follow_the_formula(nesterov, decay_rule):
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


def _updated(tx, params, grads):
  """Returns float32 parameters after an update for each of the gradients."""
  ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  state = tx.init(ours)
  for grad in grads:
    updates, state = tx.update(
      jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grad), state, ours
    )
    ours = optax.apply_updates(ours, updates)
  return ours


@pytest.mark.parametrize('decay_rule', ['all', 'kernels'])
@pytest.mark.parametrize(
  ('name', 'nesterov'), [('sgdw', False), ('sgdw', True), ('adamw', False)]
)
def test_decoupled_decay_is_that_of_timm_and_pytorch(
  name, nesterov, decay_rule
):
  torch = pytest.importorskip('torch')
  sgdw = pytest.importorskip('timm.optim').SGDW
  rng = np.random.default_rng(2)
  rates = np.geomspace(0.2, 0.01, 8)
  start = {'kernel': rng.normal(size=(3, 4)), 'bias': rng.normal(size=4)}
  grads = [
    {key: rng.normal(size=value.shape) for key, value in start.items()}
    for _ in rates
  ]
  theirs = {
    key: torch.nn.Parameter(torch.tensor(x)) for key, x in start.items()
  }
  groups = [
    {
      'params': [theirs[key]],
      'weight_decay': 0.3 * (decay_rule == 'all' or key == 'kernel'),
    }
    for key in start
  ]
  if name == 'sgdw':
    optimizer = sgdw(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
  else:
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-3)
  for rate, grad in zip(rates, grads, strict=True):
    for key, param in theirs.items():
      param.grad = torch.tensor(grad[key])
    for group in optimizer.param_groups:
      group['lr'] = rate
    optimizer.step()
  tx = create_optimizer(
    lambda step: jnp.asarray(rates, jnp.float32)[step],
    **{
      **FIELDS,
      'name': name,
      'nesterov': nesterov,
      'b2': 0.99,
      'eps': 1e-3,
      'weight_decay': 0.3,
      'decay_rule': decay_rule,
    },
  )
  with jax.numpy_dtype_promotion('standard'):  # Optax: float ** count.
    ours = _updated(tx, start, grads)
  for key, param in theirs.items():
    np.testing.assert_allclose(
      ours[key], param.detach().numpy(), rtol=1e-4, atol=1e-6
    )


NETWORK = {
  'stem_conv': {'kernel': (3, 3, 2, 4)},
  'stem_bn': {'scale': (4,), 'bias': (4,)},
  'se': {'kernel': (4, 5)},
  'head': {'kernel': (4, 3), 'bias': (3,)},
}


def _to_torch(array):
  """Output channels first."""
  return np.moveaxis(array, -1, 0).copy() if array.ndim > 1 else array.copy()


@pytest.mark.parametrize(
  ('field', 'mode', 'value', 'num_clipped'),
  [
    ('clip_norm', 'norm', 1.5, 2),
    ('clip_norm', 'norm', 1e3, 0),
    ('clip_adaptive', 'agc', 0.1, 3),
    ('clip_adaptive', 'agc', 1e3, 0),
  ],
)
def test_clipping_is_that_of_timm_before_the_decay(
  field, mode, value, num_clipped
):
  torch = pytest.importorskip('torch')
  clip = pytest.importorskip('timm.utils').dispatch_clip_grad
  rng = np.random.default_rng(3)

  def draw(scale):
    return jax.tree.map(
      lambda shape: scale * rng.normal(size=shape),
      NETWORK,
      is_leaf=lambda x: isinstance(x, tuple),
    )

  # Gradients grow, so that some are clipped and some are not.
  params, grads = draw(1.0), [draw(scale) for scale in (0.02, 0.2, 2.0)]
  # A kernel of zeros, and a channel of them, are clipped to 0.001 times that.
  params['se']['kernel'][:] = 0.0
  params['stem_conv']['kernel'][..., 1] = 0.0
  theirs = [
    torch.nn.Parameter(torch.tensor(_to_torch(x)))
    for module in NETWORK
    for x in params[module].values()
  ]
  optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.1)
  found = 0
  for grad in grads:
    flat = [
      torch.tensor(_to_torch(x))
      for module in NETWORK
      for x in grad[module].values()
    ]
    for param, x in zip(theirs, flat, strict=True):
      param.grad = x.clone()
    # As timm's training does: the last two are those of the head.
    clip(theirs[:-2] if mode == 'agc' else theirs, value, mode=mode)
    found += any(
      not torch.allclose(param.grad, x)
      for param, x in zip(theirs, flat, strict=True)
    )
    optimizer.step()
  assert found == num_clipped
  tx = create_optimizer(
    optax.constant_schedule(0.1),
    **{**FIELDS, 'weight_decay': 0.1, field: value},
  )
  ours = _updated(tx, params, grads)
  found = [x for module in NETWORK for x in ours[module].values()]
  for param, x in zip(theirs, found, strict=True):
    np.testing.assert_allclose(
      _to_torch(np.asarray(x)), param.detach().numpy(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('share', [0.5, 0.2])
def test_lookahead_is_that_of_optax(share):
  rng = np.random.default_rng(4)
  params = {'kernel': rng.normal(size=(2, 3)), 'bias': rng.normal(size=3)}
  grads = [
    {key: rng.normal(size=value.shape) for key, value in params.items()}
    for _ in range(8)
  ]
  rate = optax.linear_schedule(0.2, 0.1, 8)
  params, grads = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32), (params, grads)
  )
  theirs = optax.lookahead(create_optimizer(rate, **FIELDS), 3, share)
  pair = optax.LookaheadParams.init_synced(params)
  ours = create_optimizer(
    rate, **{**FIELDS, 'lookahead_steps': 3, 'lookahead_share': share}
  )
  state, other = ours.init(params), theirs.init(pair)
  went_back = []
  with jax.numpy_dtype_promotion('standard'):  # Optax: bool * float.
    for grad in grads:
      updates, state = ours.update(grad, state, params)
      params = optax.apply_updates(params, updates)
      update_pair, other = theirs.update(grad, other, pair)
      pair = optax.apply_updates(pair, update_pair)
      for a, b in ((params, pair.fast), (state[-1].slow, pair.slow)):
        jax.tree.map(
          lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
          a,
          b,
        )
      went_back.append(np.allclose(params['kernel'], state[-1].slow['kernel']))
  assert went_back == [False, False, True, False, False, True, False, False]


def test_weights_that_are_loaded_are_the_slow_ones_too():
  ones = {'head': {'kernel': jnp.ones((2, 3))}}
  twos = jax.tree.map(lambda x: 2 * x, ones)
  tx = create_optimizer(
    optax.constant_schedule(0.1), **{**FIELDS, 'lookahead_steps': 5}
  )
  state, begun = tx.init(ones), begin_at(tx.init(ones), twos)
  jax.tree.map(np.testing.assert_array_equal, begun, tx.init(twos))
  assert jax.tree.structure(begun) == jax.tree.structure(state)
  without = create_optimizer(optax.constant_schedule(0.1), **FIELDS).init(ones)
  jax.tree.map(np.testing.assert_array_equal, begin_at(without, twos), without)


def test_without_clipping_and_lookahead_the_state_is_what_it_was():
  params = {'head': {'kernel': jnp.ones((2, 3))}}
  for name, fields in (
    ('sgd', ('MaskedState', 'TraceState', 'ScaleByScheduleState')),
    ('sgdw', ('TraceState', 'MaskedState', 'ScaleByScheduleState')),
    ('adamw', ('ScaleByAdamState', 'MaskedState', 'ScaleByScheduleState')),
  ):
    tx = create_optimizer(
      optax.constant_schedule(0.1), **{**FIELDS, 'name': name}
    )
    found = [type(entry).__name__ for entry in tx.init(params)]
    assert found == list(fields)


def _large_batch_case(name):
  """Returns the optimizer and float64 parameters and gradients."""
  rng = np.random.default_rng(1)
  shapes = {'kernel': (2, 3), 'scale': (3,), 'bias': (3,)}
  params = {key: rng.normal(size=shape) for key, shape in shapes.items()}
  grads = [
    {key: rng.normal(size=shape) for key, shape in shapes.items()}
    for _ in RATES
  ]
  tx = create_optimizer(
    lambda step: jnp.asarray(RATES, jnp.float32)[step],
    **{
      **FIELDS,
      'name': name,
      'decay_rule': 'kernels',
      'trust_coefficient': 0.1,
      'b2': 0.99,
    },
  )
  return tx, params, grads


def test_lars_is_algorithm_1_for_kernels_and_sgd_for_the_rest():
  tx, params, grads = _large_batch_case('lars')
  ours = _updated(tx, params, grads)
  velocity = dict.fromkeys(params, 0.0)
  for rate, grad in zip(RATES, grads, strict=True):
    for name, param in params.items():
      d, ratio = grad[name], 1.0
      if name == 'kernel':  # The others: neither decayed nor adapted.
        d = d + 0.01 * param
        ratio = 0.1 * np.linalg.norm(param) / np.linalg.norm(d)
      velocity[name] = 0.9 * velocity[name] + rate * ratio * d
      params[name] = param - velocity[name]
  for name in params:
    np.testing.assert_allclose(ours[name], params[name], rtol=1e-5, atol=1e-6)


def test_lamb_is_algorithm_2_for_kernels_and_adam_for_the_rest():
  tx, params, grads = _large_batch_case('lamb')
  with jax.numpy_dtype_promotion('standard'):  # Optax: float ** count.
    ours = _updated(tx, params, grads)
  m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
  for step, (rate, grad) in enumerate(zip(RATES, grads, strict=True), start=1):
    for name, param in params.items():
      m[name] = 0.9 * m[name] + 0.1 * grad[name]
      v[name] = 0.99 * v[name] + 0.01 * np.square(grad[name])
      m_hat, v_hat = m[name] / (1 - 0.9**step), v[name] / (1 - 0.99**step)
      d, ratio = m_hat / (np.sqrt(v_hat) + 1e-6), 1.0
      if name == 'kernel':
        d = d + 0.01 * param
        ratio = np.linalg.norm(param) / np.linalg.norm(d)
      params[name] = param - rate * ratio * d
  for name in params:
    np.testing.assert_allclose(ours[name], params[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', ['lars', 'lamb'])
def test_of_a_network_kernels_alone_are_adapted_and_decayed(name):
  """What is adapted moves in proportion to the size of the weights."""
  model = create_model('cifar_resnet8')
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  )['params']
  ones = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), shapes)
  fields = {**FIELDS, 'decay_rule': 'kernels', 'name': name}

  def updates(weight_decay, size):
    tx = create_optimizer(
      optax.constant_schedule(0.1), **{**fields, 'weight_decay': weight_decay}
    )
    params = jax.tree.map(lambda x: size * x, ones)
    # One gradient points up, the next down: decay turns a kernel's update.
    grads = jax.tree.map(
      lambda x: jnp.where(jnp.arange(x.size) % 2 == 0, 1.0, -1.0).reshape(
        x.shape
      ),
      ones,
    )
    with jax.numpy_dtype_promotion('standard'):  # Optax: float ** count.
      return tx.update(grads, tx.init(params), params)[0]

  base = jax.tree_util.tree_leaves_with_path(updates(0.0, 1.0))
  decayed = jax.tree.leaves(updates(0.5, 1.0))
  large = jax.tree.leaves(updates(0.0, 3.0))
  for (path, update), with_decay, of_large in zip(
    base, decayed, large, strict=True
  ):
    is_kernel = path[-1].key == 'kernel'
    assert is_kernel == (not np.allclose(update, with_decay)), path
    factor = 3.0 if is_kernel else 1.0
    np.testing.assert_allclose(of_large, factor * update, rtol=1e-5)


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
    ({'name': 'adam'}, "'adam' is none of sgd, sgdw, adamw, lars, lamb"),
    ({'name': 'adamw', 'nesterov': True}, "nothing to 'adamw'.*=False"),
    ({'name': 'lars'}, r"'all' is not for 'lars'.*decay_rule=kernels"),
    (
      {'name': 'lamb', 'decay_rule': 'kernels', 'nesterov': True},
      "nothing to 'lamb'",
    ),
    ({'b2': 1.0}, 'b2=1.0'),
    ({'eps': -1.0}, 'eps=-1.0'),
    ({'trust_coefficient': float('inf')}, 'trust_coefficient=inf'),
    ({'decay_rule': 'some'}, 'all, kernels'),
    ({'momentum': 1.0}, 'momentum'),
    ({'weight_decay': -1.0}, 'weight_decay=-1.0'),
    ({'weight_decay': float('nan')}, 'weight_decay=nan'),
    ({'clip_norm': 0.0}, 'clip_norm=0.0 must be positive'),
    ({'clip_norm': float('nan')}, 'clip_norm=nan must be positive'),
    ({'clip_adaptive': -0.1}, 'clip_adaptive=-0.1 must be positive'),
    ({'clip_norm': 1.0, 'clip_adaptive': 0.01}, 'leave one of them out'),
    ({'lookahead_steps': 0}, 'lookahead_steps=0 must be positive'),
    ({'sam_rho': 0.0}, 'sam_rho=0.0 must be positive'),
    ({'sam_rho': float('inf')}, 'sam_rho=inf must be positive'),
    ({'sam_rho': 1e39}, r'sam_rho=1e\+39 must be positive, 1e-30 to 3.4e\+38'),
    ({'clip_norm': 1e39}, r'clip_norm=1e\+39 must be positive, 1e-30 to'),
    ({'clip_norm': 1e-50}, 'clip_norm=1e-50 must be positive, 1e-30 to'),
    ({'eps': 1e39}, r'eps=1e\+39 is not in 0 \.\. 3.4e\+38'),
    ({'lookahead_steps': 5, 'lookahead_share': 0.0}, 'lookahead_share=0.0'),
    ({'lookahead_steps': 5, 'lookahead_share': 1.1}, 'lookahead_share=1.1'),
  ],
)
def test_bad_fields_are_named(changes, message):
  with pytest.raises(InputError, match=message):
    create_optimizer(optax.constant_schedule(0.1), **{**FIELDS, **changes})
