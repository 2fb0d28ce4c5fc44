"""Optimizers against formulas, clipping against timm; what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet.errors import InputError
from resnet.models import abstract_variables, create_model
from resnet.training.optimizers import create_optimizer, decay_mask
from tests.runs import assert_close, section

RATES = [0.1, 0.2, 0.05]


def fields(**changes):
  return section('optimizer', **{'weight_decay': 0.01, **changes})


def scheduled(**changes):
  """Returns the optimizer of the fields, with changes, at the rates."""
  rates = jnp.asarray(RATES, jnp.float32)
  return create_optimizer(lambda step: rates[step], fields(**changes))


def constant(*, frozen_stages=0, **changes):
  """Returns the optimizer of the fields, with changes, at a rate of 0.1."""
  schedule = optax.constant_schedule(0.1)
  return create_optimizer(
    schedule, fields(**changes), frozen_stages=frozen_stages
  )


def draw(seed, shapes):
  """Returns float64 parameters, and gradients for each of the rates."""
  rng = np.random.default_rng(seed)

  def normal():
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}

  return normal(), [normal() for _ in RATES]


def updated(tx, params, grads):
  """Returns float32 parameters after an update for each of the gradients."""
  params, grads = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32), (params, grads)
  )
  state = tx.init(params)
  with jax.numpy_dtype_promotion('standard'):  # Optax's Adam: float ** count.
    for grad in grads:
      updates, state = tx.update(grad, state, params)
      params = optax.apply_updates(params, updates)
  return params


SHAPES = {'kernel': (2, 3), 'scale': (3,), 'bias': (3,)}


@pytest.mark.parametrize('name', ['sgd', 'sgdw'])
@pytest.mark.parametrize(
  ('nesterov', 'decay_rule'), [(False, 'all'), (True, 'kernels')]
)
def test_sgd_and_sgdw_follow_their_formulas(name, nesterov, decay_rule):
  params, grads = draw(0, SHAPES)
  tx = scheduled(name=name, nesterov=nesterov, decay_rule=decay_rule)
  ours = updated(tx, params, grads)
  velocity = dict.fromkeys(params, 0.0)
  for rate, grad in zip(RATES, grads, strict=True):
    for key, param in params.items():
      decays = decay_rule == 'all' or key == 'kernel'
      decay = 0.01 * decays * param
      g = grad[key] + decay if name == 'sgd' else grad[key]
      velocity[key] = 0.9 * velocity[key] + g
      step = g + 0.9 * velocity[key] if nesterov else velocity[key]
      if name == 'sgdw':
        step = step + decay
      params[key] = param - rate * step
  assert_close(ours, params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('field', 'mode', 'value', 'num_clipped'),
  [('clip_norm', 'norm', 1.5, 2), ('clip_adaptive', 'agc', 0.1, 3)],
)
def test_clipping_equals_that_of_timm_and_precedes_weight_decay(
  field, mode, value, num_clipped
):
  torch = pytest.importorskip('torch')
  clip = pytest.importorskip('timm.utils').dispatch_clip_grad

  def to_torch(array):  # Output channels first.
    return torch.tensor(np.moveaxis(array, -1, 0).copy())

  params, grads = draw(
    3, {'conv': (3, 3, 2, 4), 'bn': (4,), 'se': (4, 5), 'head': (4, 3)}
  )
  # Gradients grow, so that some are clipped and some are not.
  for scale, grad in zip((0.02, 0.2, 2.0), grads, strict=True):
    grad.update({name: scale * x for name, x in grad.items()})
  # A kernel of zeros, and a channel of them, are clipped to 0.001 times that.
  params['se'][:] = 0.0
  params['conv'][..., 1] = 0.0
  theirs = {name: torch.nn.Parameter(to_torch(x)) for name, x in params.items()}
  # As timm's training does.
  names = params.keys() - ({'head'} if mode == 'agc' else set())
  optimizer = torch.optim.SGD(
    theirs.values(), lr=0.1, momentum=0.9, weight_decay=0.1
  )
  found = 0
  for grad in grads:
    for name, param in theirs.items():
      param.grad = to_torch(grad[name])
    clip([theirs[name] for name in names], value, mode=mode)
    found += any(
      not torch.allclose(param.grad, to_torch(grad[name]))
      for name, param in theirs.items()
    )
    optimizer.step()
  assert found == num_clipped
  ours = updated(constant(weight_decay=0.1, **{field: value}), params, grads)
  for name, param in theirs.items():
    np.testing.assert_allclose(
      to_torch(np.asarray(ours[name])),
      param.detach().numpy(),
      rtol=1e-4,
      atol=1e-6,
    )


@pytest.mark.parametrize(
  ('name', 'entries'),
  [
    ('sgd', ['MaskedState', 'TraceState', 'ScaleByScheduleState']),
    ('sgdw', ['TraceState', 'MaskedState', 'ScaleByScheduleState']),
    ('adamw', ['ScaleByAdamState', 'MaskedState', 'ScaleByScheduleState']),
  ],
)
def test_unused_options_add_nothing_to_the_state(name, entries):
  state = constant(name=name).init({'head': {'kernel': jnp.ones((2, 3))}})
  assert [type(entry).__name__ for entry in state] == entries


def test_backbone_learns_more_slowly_and_frozen_stages_do_not_learn():
  names = ('stem_conv', 'stage1_block1', 'stage2_block1', 'head')
  params = {name: {'kernel': jnp.ones((2, 3))} for name in names}

  def first_update(**changes):
    tx = constant(**changes)
    return tx.update(params, tx.init(params), params)[0]

  whole = first_update()
  slower = first_update(backbone_multiplier=0.25, frozen_stages=1)
  for name, share in zip(names, (0, 0, 0.25, 1), strict=True):
    np.testing.assert_allclose(
      slower[name]['kernel'], share * whole[name]['kernel'], rtol=1e-6
    )
    assert np.all(whole[name]['kernel'] != 0)


def test_lars_follows_algorithm_1_for_kernels_and_sgd_otherwise():
  params, grads = draw(1, SHAPES)
  tx = scheduled(name='lars', decay_rule='kernels', trust_coefficient=0.1)
  ours = updated(tx, params, grads)
  velocity = dict.fromkeys(params, 0.0)
  for rate, grad in zip(RATES, grads, strict=True):
    for name, param in params.items():
      d, ratio = grad[name], 1.0
      if name == 'kernel':  # The others: neither decayed nor adapted.
        d = d + 0.01 * param
        ratio = 0.1 * np.linalg.norm(param) / np.linalg.norm(d)
      velocity[name] = 0.9 * velocity[name] + rate * ratio * d
      params[name] = param - velocity[name]
  assert_close(ours, params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['adamw', 'lamb'])
def test_adamw_and_lamb_follow_their_algorithms(name):
  """LAMB adapts kernels; both decay kernels only."""
  params, grads = draw(1, SHAPES)
  tx = scheduled(name=name, decay_rule='kernels', b2=0.99)
  ours = updated(tx, params, grads)
  m, v = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
  for step, (rate, grad) in enumerate(zip(RATES, grads, strict=True), start=1):
    for key, param in params.items():
      m[key] = 0.9 * m[key] + 0.1 * grad[key]
      v[key] = 0.99 * v[key] + 0.01 * np.square(grad[key])
      m_hat, v_hat = m[key] / (1 - 0.9**step), v[key] / (1 - 0.99**step)
      d, ratio = m_hat / (np.sqrt(v_hat) + 1e-6), 1.0
      if key == 'kernel':
        d = d + 0.01 * param
        if name == 'lamb':
          ratio = np.linalg.norm(param) / np.linalg.norm(d)
      params[key] = param - rate * ratio * d
  assert_close(ours, params, rtol=1e-4, atol=1e-6)


def test_decay_rule_kernels_excludes_scales_and_biases():
  params = abstract_variables(create_model('cifar_resnet8'))['params']
  mask = jax.tree.leaves_with_path(decay_mask(params, 'kernels'))
  decays = {(path[-1].key, decays) for path, decays in mask}
  assert decays == {('kernel', True), ('scale', False), ('bias', False)}
  assert all(jax.tree.leaves(decay_mask(params, 'all')))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'lars'}, r"'all' is not for 'lars'.*decay_rule=kernels"),
    ({'clip_norm': 1.0, 'clip_adaptive': 0.01}, 'leave one out'),
  ],
)
def test_errors_name_bad_fields(changes, message):
  with pytest.raises(InputError, match=message):
    constant(**changes)
