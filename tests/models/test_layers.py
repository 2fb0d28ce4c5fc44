"""Layers against NumPy, Flax and closed forms."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import layers

_KEY = jax.random.key(0)


def _normal(seed, shape, dtype=jnp.float32):
  values = np.random.default_rng(seed).standard_normal(shape, np.float32)
  return jnp.asarray(values, dtype)


def _windows(x, size, strides, padding, fill):
  """NumPy's [B, H, W, C] -> [B, H', W', C, size, size]."""
  pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  x = np.pad(np.asarray(x), pad, constant_values=fill)
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
  return windows[:, ::strides, ::strides]


@pytest.mark.parametrize(('size', 'strides'), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv_pads_half_a_kernel_on_every_side(size, strides):
  x = _normal(1, (2, 10, 8, 3))
  conv = layers.conv(5, size, strides, name='conv')
  y, variables = jax.jit(conv.init_with_output)(_KEY, x)
  kernel = variables['params']['kernel']
  assert kernel.shape == (size, size, 3, 5)  # HWIO
  assert list(variables['params']) == ['kernel']  # No bias.
  windows = _windows(x, size, strides, (size - 1) // 2, 0.0)
  expected = np.einsum('bhwcij,ijco->bhwo', windows, kernel)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_kernels_are_he_normal_by_fan_out():
  conv = layers.conv(512, 3, name='conv')
  images = jnp.zeros((1, 4, 4, 64))
  kernel = jax.jit(conv.init)(_KEY, images)['params']['kernel']
  std = np.sqrt(2 / (3 * 3 * 512))
  # 294,912 samples: the standard error of their std is 0.13 %.
  assert np.std(kernel) == pytest.approx(std, rel=0.01)
  assert abs(np.mean(kernel)) < 0.01 * std
  # 4.55 % of a normal are beyond two deviations, none of a truncated one.
  beyond = np.mean(np.abs(kernel) > 2 * std)
  assert beyond == pytest.approx(0.0455, abs=0.003)


def _norm_variables(channels):
  return {
    'params': {
      'scale': 1.0 + 0.5 * _normal(2, (channels,)),
      'bias': _normal(3, (channels,)),
    },
    'batch_stats': {
      'mean': _normal(4, (channels,)),
      'var': 1.0 + jnp.square(_normal(5, (channels,))),
    },
  }


def _run_norm(norm, variables, x, cotangent):
  """Returns the output, statistics and gradients of a training step."""

  def forward(params, x):
    return norm.apply(
      {**variables, 'params': params}, x, mutable=['batch_stats']
    )

  @jax.jit
  def step(params, x, cotangent):
    y, vjp, updates = jax.vjp(forward, params, x, has_aux=True)
    params_grad, x_grad = vjp(cotangent)
    return {
      'y': y,
      'stats': updates['batch_stats'],
      'params_grad': params_grad,
      'x_grad': x_grad,
    }

  return step(variables['params'], x, cotangent)


def _assert_close(actual, expected, tolerance):
  """Each array within `tolerance` of its largest element, of equal dtype."""

  def check(path, a, b):
    assert a.dtype == b.dtype, path
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(
      a,
      b,
      rtol=0,
      atol=tolerance * np.max(np.abs(b)),
      err_msg=jax.tree_util.keystr(path),
    )

  jax.tree_util.tree_map_with_path(check, actual, expected)


# A sum of 512 float32; bfloat16 keeps 8 bits, and one rounding is 2 ** -9.
@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)]
)
def test_batch_norm_equals_that_of_flax(dtype, tolerance):
  x = 2.0 + 3.0 * _normal(1, (8, 8, 8, 16))
  x, cotangent = x.astype(dtype), _normal(6, x.shape, dtype)
  variables = _norm_variables(16)
  ours = layers.BatchNorm(use_running_average=False, dtype=dtype)
  flax = nn.BatchNorm(
    use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype
  )
  with jax.numpy_dtype_promotion('standard'):  # Flax mixes dtypes.
    expected = _run_norm(flax, variables, x, cotangent)
  actual = _run_norm(ours, variables, x, cotangent)
  _assert_close(actual, expected, tolerance)
  assert actual['y'].dtype == dtype
  assert actual['stats']['var'].dtype == jnp.float32
  # The statistics are float32 whatever the dtype of x.
  _assert_close(actual['stats'], expected['stats'], 2e-6)


def test_initial_variables_of_batch_norm_equal_those_of_flax():
  x = _normal(1, (4, 3, 3, 5))
  ours, flax = (
    jax.jit(norm(use_running_average=False).init)(_KEY, x)
    for norm in (layers.BatchNorm, nn.BatchNorm)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_batch_norm_normalises_each_group_like_a_batch():
  x, cotangent = _normal(1, (6, 4, 5, 7)), _normal(6, (6, 4, 5, 7))
  variables = _norm_variables(7)
  actual = _run_norm(
    layers.BatchNorm(use_running_average=False, group_size=2),
    variables,
    x,
    cotangent,
  )
  flax = nn.BatchNorm(
    use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=jnp.float32
  )
  groups = [
    _run_norm(flax, variables, x[i : i + 2], cotangent[i : i + 2])
    for i in (0, 2, 4)
  ]

  def combine(name, function):
    return jax.tree.map(
      lambda *leaves: function(leaves), *(group[name] for group in groups)
    )

  expected = {
    'y': combine('y', np.concatenate),
    'stats': combine('stats', lambda leaves: np.mean(leaves, axis=0)),
    'params_grad': combine('params_grad', lambda leaves: np.sum(leaves, 0)),
    'x_grad': combine('x_grad', np.concatenate),
  }
  _assert_close(actual, expected, 2e-6)
  whole = _run_norm(flax, variables, x, cotangent)
  assert np.max(np.abs(actual['y'] - whole['y'])) > 0.1


def test_batch_norm_uses_running_statistics_in_evaluation():
  x = _normal(1, (3, 4, 4, 5))
  variables = _norm_variables(5)
  norm = layers.BatchNorm(use_running_average=True, group_size=2)
  y, updates = norm.apply(variables, x, mutable=['batch_stats'])
  params, stats, x = jax.tree.map(
    np.asarray, (variables['params'], variables['batch_stats'], x)
  )
  expected = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  expected = expected * params['scale'] + params['bias']
  np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
  jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], stats)


def test_batch_norm_variance_is_never_negative():
  x = 1e4 + 0.01 * _normal(1, (4, 8, 8, 64))
  mean_of_square = jnp.mean(lax.square(x)[None], axis=(1, 2, 3))
  square_of_mean = lax.square(jnp.mean(x[None], axis=(1, 2, 3)))
  assert np.min(mean_of_square - square_of_mean) < 0.0  # The trap is real.
  norm = layers.BatchNorm(use_running_average=False, momentum=0.0)
  variables = norm.init(_KEY, x)
  result = _run_norm(norm, variables, x, jnp.ones_like(x))
  assert np.min(result['stats']['var']) >= 0.0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
