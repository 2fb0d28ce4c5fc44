"""Blocks against the formula relu(F(x) + shortcut(x))."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import layers
from resnet.models.blocks import BasicBlock, BottleneckBlock

_V1 = functools.partial(BottleneckBlock, stride_in_1x1=True)
_KEY = jax.random.key(0)


def _create(block_cls, *, filters, strides=1, zero_init=False):
  """A block in training, with shortcut B."""
  zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones
  return block_cls(
    filters=filters,
    strides=strides,
    conv=layers.conv,
    norm=functools.partial(layers.BatchNorm, use_running_average=False),
    shortcut=layers.SHORTCUTS['B'],
    last_scale_init=zeros if zero_init else ones,
  )


def _images(channels):
  """What a block sees: the output of a ReLU, with zeros in it."""
  x = np.random.default_rng(1).standard_normal((4, 8, 6, channels), np.float32)
  return jnp.asarray(np.maximum(x, 0.0))


def _conv_norm(x, conv, norm, strides):
  """Convolution and batch norm over the batch, from their definitions."""
  kernel = conv['kernel']
  padding = ((kernel.shape[0] - 1) // 2,) * 2
  y = lax.conv_general_dilated(
    x,
    kernel,
    (strides, strides),
    (padding, padding),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  y = np.asarray(y)
  mean, var = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
  normalized = (y - mean) / np.sqrt(var + 1e-5)
  return normalized * np.asarray(norm['scale']) + np.asarray(norm['bias'])


@pytest.mark.parametrize(
  ('block_cls', 'filters', 'channels', 'strides'),
  [
    (BasicBlock, 16, 16, (1, 1)),
    (BasicBlock, 16, 16, (2, 1)),
    (BottleneckBlock, 4, 16, (1, 1, 1)),
    (BottleneckBlock, 4, 8, (1, 2, 1)),
    (_V1, 4, 8, (2, 1, 1)),
  ],
)
def test_block_is_the_relu_of_residual_plus_shortcut(
  block_cls, filters, channels, strides
):
  block = _create(block_cls, filters=filters, strides=max(strides))
  x = _images(channels)
  params = jax.jit(block.init)(_KEY, x)['params']
  rng = np.random.default_rng(2)  # So that no scale is one, no bias zero.
  params = jax.tree.map(
    lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params
  )
  actual, _ = jax.jit(functools.partial(block.apply, mutable=['batch_stats']))(
    {'params': params}, x
  )

  shortcut = x
  if 'shortcut_conv' in params:
    shortcut = _conv_norm(
      x, params['shortcut_conv'], params['shortcut_bn'], max(strides)
    )
  for i, stride in enumerate(strides, start=1):
    x = _conv_norm(x, params[f'conv{i}'], params[f'bn{i}'], stride)
    x = x if i == len(strides) else np.maximum(x, 0.0)
  expected = np.maximum(x + shortcut, 0.0)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('block_cls', 'height_after_conv1'),
  [(BasicBlock, 4), (BottleneckBlock, 8), (_V1, 4)],
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


@pytest.mark.parametrize(
  ('block_cls', 'filters'), [(BasicBlock, 16), (BottleneckBlock, 4)]
)
def test_a_new_block_with_zero_last_scale_is_the_identity(block_cls, filters):
  def outputs_and_gradient(x, *, zero_init):
    block = _create(block_cls, filters=filters, zero_init=zero_init)
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

  x = _images(16)
  y, x_grad = outputs_and_gradient(x, zero_init=True)
  np.testing.assert_array_equal(
    np.asarray(y).view(np.uint32), np.asarray(x).view(np.uint32)
  )
  # The gradient is that of the last ReLU alone.
  relu_grad = np.asarray(x > 0.0, np.float32)
  np.testing.assert_array_equal(x_grad, relu_grad)
  y, x_grad = outputs_and_gradient(x, zero_init=False)
  assert np.mean(np.abs(y - x)) > 0.1
  assert np.mean(np.abs(x_grad - relu_grad)) > 0.1
