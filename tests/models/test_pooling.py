"""Max-pooling is exact on every backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import pooling
from resnet.models.convolution import CONV_BACKENDS


def test_max_pool_pads_one_on_every_side_with_minus_infinity():
  x = -1.0 - np.random.default_rng(0).random((2, 8, 6, 3))
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  expected = windows[:, ::2, ::2].max(axis=(-2, -1))
  y = pooling.stem_max_pool(jnp.asarray(x, jnp.float32))
  np.testing.assert_array_equal(y, expected.astype(np.float32))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('size', [(8, 6), (7, 5), (2, 3)])
@pytest.mark.parametrize(
  'pool', [pooling.stem_max_pool, pooling.stem_blur_pool]
)
def test_backends_give_the_same_bits(pool, size, dtype):
  # A few values, so that many pixels of a window are equal.
  x = jax.random.randint(jax.random.key(0), (2, *size, 3), -3, 3)
  x = x.astype(dtype)

  @functools.partial(jax.jit, static_argnames='backend')
  def run(backend):
    y, pull_back = jax.vjp(functools.partial(pool, backend=backend), x)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=dtype)).reshape(y.shape)
    return y, *pull_back(cotangent)

  for a, b in zip(run(backend='xla'), run(backend='matmul'), strict=True):
    a, b = (np.asarray(array, np.float32) for array in (a, b))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('backend', CONV_BACKENDS)
def test_nan_is_the_largest(backend):
  x = jnp.ones((1, 3, 3, 1)).at[0, 1, 1, 0].set(jnp.nan)
  assert jnp.isnan(pooling.stem_max_pool(x, backend=backend)).all()
