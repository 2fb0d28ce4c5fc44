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
from resnet.models.lecture import Bottleneck, ResidualBottleneck
from resnet.models.shortcuts import SHORTCUTS

_V1 = functools.partial(BottleneckBlock, stride_in_1x1=True)
_PREACT_V1 = functools.partial(PreActBottleneckBlock, stride_in_1x1=True)
_RESNEXT = functools.partial(BottleneckBlock, groups=2, width_per_group=32)
_KEY = jax.random.key(0)


def _create(block_cls, *, filters, strides=1, zero_init=False, shortcut='B'):
  """A block in training."""
  return block_cls(
    filters=filters,
    strides=strides,
    conv=layers.conv,
    norm=functools.partial(layers.BatchNorm, use_running_average=False),
    shortcut=SHORTCUTS[shortcut],
    zero_init_last=zero_init,
  )


def _images(channels, seed=1):
  """What a block sees: the output of a ReLU, with zeros in it."""
  x = np.random.default_rng(seed).standard_normal((4, 8, 6, channels))
  return jnp.asarray(np.maximum(x, 0.0), jnp.float32)


def _random_params(block, x):
  """Parameters of which no scale is one and no bias zero."""
  params = jax.jit(block.init)(_KEY, x)['params']
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params
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


@pytest.mark.parametrize('shortcut', ['B', 'none'])
@pytest.mark.parametrize(
  ('block_cls', 'filters', 'channels', 'strides'),
  [
    (BasicBlock, 16, 16, (1, 1)),
    (BasicBlock, 16, 16, (2, 1)),
    (BottleneckBlock, 4, 16, (1, 1, 1)),
    (BottleneckBlock, 4, 8, (1, 2, 1)),
    (_V1, 4, 8, (2, 1, 1)),
    (_RESNEXT, 4, 8, (1, 2, 1)),
  ],
)
def test_block_is_the_relu_of_residual_plus_shortcut(
  block_cls, filters, channels, strides, shortcut
):
  block = _create(
    block_cls, filters=filters, strides=max(strides), shortcut=shortcut
  )
  x = _images(channels)
  params = _random_params(block, x)
  y = x
  for i, stride in enumerate(strides, start=1):
    y = _norm(_conv(y, params[f'conv{i}'], stride), params[f'bn{i}'])
    y = y if i == len(strides) else _relu(y)
  if 'shortcut_conv' in params:
    projected = _conv(x, params['shortcut_conv'], max(strides))
    y = y + _norm(projected, params['shortcut_bn'])
  elif shortcut != 'none':
    y = y + x
  np.testing.assert_allclose(
    _apply(block, params, x), _relu(y), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('activate_input', [True, False])
@pytest.mark.parametrize(
  ('block_cls', 'filters', 'channels', 'strides'),
  [
    (PreActBasicBlock, 16, 16, (1, 1)),
    (PreActBasicBlock, 16, 8, (2, 1)),
    (PreActBottleneckBlock, 4, 16, (1, 1, 1)),
    (PreActBottleneckBlock, 4, 8, (1, 2, 1)),
    (_PREACT_V1, 4, 8, (2, 1, 1)),
  ],
)
def test_preactivation_block_is_residual_of_activated_plus_shortcut(
  block_cls, filters, channels, strides, activate_input
):
  block_cls = functools.partial(block_cls, activate_input=activate_input)
  block = _create(block_cls, filters=filters, strides=max(strides))
  x = _images(channels) - 0.5
  params = _random_params(block, x)
  assert ('bn1' in params) == activate_input
  activated = (
    _relu(_norm(np.asarray(x), params['bn1'])) if activate_input else x
  )
  y = activated
  for i, stride in enumerate(strides, start=1):
    y = y if i == 1 else _relu(_norm(y, params[f'bn{i}']))
    y = _conv(y, params[f'conv{i}'], stride)
  if 'shortcut_conv' in params:
    y = y + _conv(activated, params['shortcut_conv'], max(strides))
    assert 'shortcut_bn' not in params
  else:
    y = y + x
  np.testing.assert_allclose(_apply(block, params, x), y, rtol=1e-4, atol=1e-4)


def test_squeeze_excitation_gates_the_residual_before_the_addition():
  block = _create(BottleneckBlock, filters=4).clone(se_reduction=4)
  ungated = _create(BottleneckBlock, filters=4)
  x = _images(16)
  params = _random_params(block, x)
  # A gate that is shut leaves the shortcut, one that is open changes nothing.
  for gate, expected in (
    (-100.0, x),
    (100.0, _apply(ungated, _without_gate(params), x)),
  ):
    bias = jnp.full_like(params['se_expand']['bias'], gate)
    fixed = {**params, 'se_expand': {**params['se_expand'], 'bias': bias}}
    np.testing.assert_allclose(
      _apply(block, fixed, x), expected, rtol=1e-5, atol=1e-5
    )


def _without_gate(params):
  return {name: p for name, p in params.items() if not name.startswith('se_')}


def test_the_width_of_a_bottleneck_grows_with_the_width_of_a_group():
  def kernel(filters, **fields):
    block = _create(BottleneckBlock, filters=filters).clone(**fields)
    params = jax.eval_shape(block.init, _KEY, _images(4 * filters))['params']
    return params['conv2']['kernel'].shape

  assert kernel(64) == (3, 3, 64, 64)
  assert kernel(64, width_per_group=128) == (3, 3, 128, 128)
  assert kernel(128, width_per_group=128) == (3, 3, 256, 256)
  assert kernel(64, groups=32, width_per_group=4) == (3, 3, 4, 128)
  assert kernel(128, groups=32, width_per_group=8) == (3, 3, 16, 512)


@pytest.mark.parametrize(
  ('block_cls', 'height_after_conv1'),
  [
    (BasicBlock, 4),
    (BottleneckBlock, 8),
    (_V1, 4),
    (PreActBasicBlock, 4),
    (PreActBottleneckBlock, 8),
    (_PREACT_V1, 4),
  ],
)
def test_v1_strides_in_the_first_1x1_and_v1_5_in_the_3x3(
  block_cls, height_after_conv1
):
  block = _create(block_cls, filters=4, strides=2)
  _, state = jax.eval_shape(
    functools.partial(
      block.init_with_output, capture_intermediates=True, mutable=True
    ),
    _KEY,
    _images(8),
  )
  heights = {
    name: calls['__call__'][0].shape[1]
    for name, calls in state['intermediates'].items()
    if 'conv' in name
  }
  names = [name for name in state['params'] if 'conv' in name]
  assert heights == {
    name: height_after_conv1 if name == 'conv1' else 4 for name in names
  }


def _output_and_gradient(block, x):
  """Of a new block."""
  variables = jax.jit(block.init)(_KEY, x)

  @jax.jit
  def step(variables, x):
    y, vjp, _ = jax.vjp(
      lambda x: block.apply(variables, x, mutable=['batch_stats']),
      x,
      has_aux=True,
    )
    return y, vjp(jnp.ones_like(y))[0]

  return step(variables, x)


def _assert_same_bits(x, y):
  np.testing.assert_array_equal(
    np.asarray(y).view(np.uint32), np.asarray(x).view(np.uint32)
  )


@pytest.mark.parametrize(
  ('block_cls', 'filters'),
  [
    (BasicBlock, 16),
    (BottleneckBlock, 4),
    (functools.partial(BottleneckBlock, se_reduction=4), 4),
    (PreActBasicBlock, 16),
    (PreActBottleneckBlock, 4),
  ],
)
def test_a_new_block_with_zero_last_scale_is_the_identity(block_cls, filters):
  is_preact = block_cls in (PreActBasicBlock, PreActBottleneckBlock)
  x = _images(16) - (0.5 if is_preact else 0.0)
  block = _create(block_cls, filters=filters, zero_init=True)
  y, x_grad = _output_and_gradient(block, x)
  _assert_same_bits(x, y)
  # The gradient is that of the last ReLU alone, which v2 has not.
  relu_grad = np.asarray((x > 0.0) | is_preact, np.float32)
  np.testing.assert_array_equal(x_grad, relu_grad)
  block = _create(block_cls, filters=filters, zero_init=False)
  y, x_grad = _output_and_gradient(block, x)
  assert np.mean(np.abs(y - x)) > 0.1
  assert np.mean(np.abs(x_grad - relu_grad)) > 0.1


def test_the_bottleneck_of_the_lecture_has_biases_and_relus_only():
  block, x = Bottleneck(4, 12), _images(8)
  params = _random_params(block, x)
  assert set(params) == {'conv1', 'conv2', 'conv3'}
  y = x
  for conv in params.values():
    y = _relu(_conv(y, conv) + np.asarray(conv['bias']))
  np.testing.assert_allclose(
    block.apply({'params': params}, x), y, rtol=1e-4, atol=1e-4
  )


def test_the_residual_bottleneck_adds_its_input_before_the_last_relu():
  block, x = ResidualBottleneck(4, 8), _images(8)
  params = _random_params(block, x)
  y = x
  for name, conv in params.items():
    y = _conv(y, conv) + np.asarray(conv['bias'])
    y = y + x if name == 'conv3' else y
    y = _relu(y)
  np.testing.assert_allclose(
    block.apply({'params': params}, x), y, rtol=1e-4, atol=1e-4
  )
  new, _ = block.init_with_output(_KEY, x)
  _assert_same_bits(x, new)
