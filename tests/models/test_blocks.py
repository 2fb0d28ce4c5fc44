"""Blocks against their formulas, written out in NumPy."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import layers
from resnet.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet.models.lecture import Bottleneck
from resnet.models.shortcuts import SHORTCUTS

_V1 = functools.partial(BottleneckBlock, stride_in_1x1=True)
_PREACT_V1 = functools.partial(PreActBottleneckBlock, stride_in_1x1=True)
_RESNEXT = functools.partial(BottleneckBlock, groups=2, width_per_group=32)
_SE = functools.partial(BottleneckBlock, se_reduction=4)
_KEY = jax.random.key(0)


def _create(block_cls, filters, strides=1, shortcut='B', *, zero_init=False):
  """A block in training."""
  return block_cls(
    filters=filters,
    strides=strides,
    conv=layers.conv,
    norm=functools.partial(layers.BatchNorm, use_running_average=False),
    shortcut=SHORTCUTS[shortcut],
    zero_init_last=zero_init,
  )


def _images(channels):
  """What a block sees: the output of a ReLU, with zeros in it."""
  x = np.random.default_rng(1).standard_normal((4, 7, 6, channels))
  return np.maximum(x, 0.0).astype(np.float32)


def _random_params(block, x):
  """Parameters of which no scale is one and no bias zero."""
  params = jax.jit(block.init)(_KEY, x)['params']
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda p: np.asarray(p) + 0.1 * rng.standard_normal(p.shape, np.float32),
    params,
  )


def _apply(block, params, x):
  return jax.jit(functools.partial(block.apply, mutable=['batch_stats']))(
    {'params': params}, x
  )[0]


def _conv(x, conv, strides=1):
  """A convolution from its definition; groups as the kernel says."""
  kernel = conv['kernel']
  padding = ((kernel.shape[0] - 1) // 2,) * 2
  return np.asarray(
    lax.conv_general_dilated(
      x,
      kernel,
      (strides, strides),
      (padding, padding),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1] // kernel.shape[2],
    )
  )


def _norm(y, norm):
  """Batch norm over the batch, from its definition."""
  mean, var = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
  normalized = (y - mean) / np.sqrt(var + 1e-5)
  return normalized * np.asarray(norm['scale']) + np.asarray(norm['bias'])


def _relu(y):
  return np.maximum(y, 0.0)


def _gate(y, reduce, expand):
  """Squeeze-and-excitation (Hu et al. 2018, section 3)."""
  hidden = _relu(y.mean(axis=(1, 2)) @ reduce['kernel'] + reduce['bias'])
  gate = 1 / (1 + np.exp(-(hidden @ expand['kernel'] + expand['bias'])))
  return y * gate[:, None, None, :]


def _pool(x):
  """Means of 2x2 pixels, of fewer at an odd border."""
  rows, columns = (range(0, size, 2) for size in x.shape[1:3])
  means = [
    [x[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for j in columns]
    for i in rows
  ]
  return np.stack([np.stack(row, axis=1) for row in means], axis=1)


def _shortcut(option, x, activated, residual, strides, params):
  """The options of He et al. 2016, Table 3, and D of He et al. 2019."""
  filters = residual.shape[-1]
  if option == 'none':
    return 0.0
  if option != 'C' and x.shape == residual.shape:
    assert 'shortcut_conv' not in params
    return x
  if option == 'A':
    assert 'shortcut_conv' not in params
    y = activated[:, ::strides, ::strides]
    return np.pad(y, ((0, 0),) * 3 + ((0, filters - y.shape[-1]),))
  if option == 'D':
    activated, strides = _pool(activated), 1
  y = _conv(activated, params['shortcut_conv'], strides)
  return _norm(y, params['shortcut_bn']) if 'shortcut_bn' in params else y


@pytest.mark.parametrize(
  ('block_cls', 'filters', 'channels', 'strides', 'shortcut'),
  [
    (BasicBlock, 16, 16, (1, 1), 'B'),
    (BasicBlock, 16, 8, (2, 1), 'A'),
    (BasicBlock, 16, 16, (1, 1), 'C'),
    (BasicBlock, 16, 8, (2, 1), 'none'),
    (BottleneckBlock, 4, 16, (1, 1, 1), 'D'),
    (BottleneckBlock, 4, 8, (1, 2, 1), 'B'),
    (BottleneckBlock, 4, 8, (1, 2, 1), 'D'),
    (BottleneckBlock, 4, 16, (1, 1, 1), 'none'),
    (_V1, 4, 8, (2, 1, 1), 'C'),
    (_RESNEXT, 4, 8, (1, 2, 1), 'B'),
    (_SE, 4, 16, (1, 1, 1), 'B'),
  ],
)
def test_v1_blocks_follow_their_formula(
  block_cls, filters, channels, strides, shortcut
):
  block = _create(block_cls, filters, max(strides), shortcut)
  x = _images(channels)
  params = _random_params(block, x)
  assert ('shortcut_bn' in params) == ('shortcut_conv' in params)
  y = x
  for i, stride in enumerate(strides, start=1):
    y = _norm(_conv(y, params[f'conv{i}'], stride), params[f'bn{i}'])
    y = y if i == len(strides) else _relu(y)
  if 'se_reduce' in params:
    y = _gate(y, params['se_reduce'], params['se_expand'])
  y = _relu(y + _shortcut(shortcut, x, x, y, max(strides), params))
  np.testing.assert_allclose(_apply(block, params, x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('block_cls', 'filters', 'channels', 'strides', 'shortcut', 'activate_input'),
  [
    (PreActBasicBlock, 16, 16, (1, 1), 'B', True),
    (PreActBasicBlock, 16, 8, (2, 1), 'A', True),
    (PreActBasicBlock, 16, 8, (2, 1), 'B', False),
    (PreActBottleneckBlock, 4, 16, (1, 1, 1), 'A', False),
    (PreActBottleneckBlock, 4, 16, (1, 1, 1), 'C', True),
    (PreActBottleneckBlock, 4, 8, (1, 2, 1), 'D', True),
    (_PREACT_V1, 4, 8, (2, 1, 1), 'B', True),
  ],
)
def test_v2_blocks_follow_their_formula(
  block_cls, filters, channels, strides, shortcut, activate_input
):
  block_cls = functools.partial(block_cls, activate_input=activate_input)
  block = _create(block_cls, filters, max(strides), shortcut)
  x = _images(channels) - 0.5
  params = _random_params(block, x)
  assert ('bn1' in params) == activate_input
  assert 'shortcut_bn' not in params
  activated = _relu(_norm(x, params['bn1'])) if activate_input else x
  y = activated
  for i, stride in enumerate(strides, start=1):
    y = y if i == 1 else _relu(_norm(y, params[f'bn{i}']))
    y = _conv(y, params[f'conv{i}'], stride)
  y = y + _shortcut(shortcut, x, activated, y, max(strides), params)
  np.testing.assert_allclose(_apply(block, params, x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('block_cls', 'filters'),
  [
    (BasicBlock, 16),
    (_SE, 4),
    (PreActBasicBlock, 16),
    (PreActBottleneckBlock, 4),
  ],
)
def test_zero_init_makes_a_new_block_the_identity(block_cls, filters):
  is_preact = block_cls in (PreActBasicBlock, PreActBottleneckBlock)
  x = _images(16) - np.float32(0.5 if is_preact else 0.0)

  @functools.partial(jax.jit, static_argnames='zero_init')
  def run(zero_init):
    block = _create(block_cls, filters, zero_init=zero_init)
    variables = block.init(_KEY, x)
    apply = functools.partial(block.apply, variables, mutable=['batch_stats'])
    y, vjp, _ = jax.vjp(apply, x, has_aux=True)
    return y, vjp(jnp.ones_like(y))[0]

  y, x_grad = run(zero_init=True)
  np.testing.assert_array_equal(y, x)
  # The gradient is that of the last ReLU alone, which v2 has not.
  relu_grad = np.asarray((x > 0.0) | is_preact, np.float32)
  np.testing.assert_array_equal(x_grad, relu_grad)
  y, x_grad = run(zero_init=False)
  assert np.mean(np.abs(y - x)) > 0.1
  assert np.mean(np.abs(x_grad - relu_grad)) > 0.1


@pytest.mark.parametrize('is_residual', [False, True])
def test_lecture_bottlenecks_follow_their_formula(is_residual):
  block, x = Bottleneck(4, 8, is_residual), _images(8)
  params = _random_params(block, x)
  assert set(params) == {'conv1', 'conv2', 'conv3'}
  y = x
  for name, conv in params.items():
    y = _conv(y, conv) + np.asarray(conv['bias'])
    y = _relu(y + x if is_residual and name == 'conv3' else y)
  np.testing.assert_allclose(_apply(block, params, x), y, rtol=1e-4, atol=1e-4)
  if is_residual:
    new, _ = jax.jit(block.init_with_output)(_KEY, x)
    np.testing.assert_array_equal(new, x)
