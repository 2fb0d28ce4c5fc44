"""Convolution as XLA has it, or as a matrix product.

XLA's convolution for the CPU is slow where the kernel is 1x1: with a matrix
product there, a training step of ResNet-50 takes about 0.6 of the time. And it
is slow where the kernel is larger than the image, as in the last stage of a net
for CIFAR on 8x8 pixels: a product of patches halves the time of such a step.
(Elsewhere the patches cost more to copy, and to compile, than they gain.)
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

CONV_BACKENDS = ('xla', 'matmul')


def choose(conv_backend: str | None) -> str:
  """Returns `conv_backend`, or what is faster on JAX's default backend."""
  if conv_backend is None:
    return 'matmul' if jax.default_backend() == 'cpu' else 'xla'
  return conv_backend


def matmul_conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """`lax.conv_general_dilated` of x [B, H, W, C] and kernel [h, w, C, F].

  A matrix product where the kernel has no groups and is 1x1 without padding, or
  has at least as many taps as there are pixels in the result.
  """
  *size, _, filters = kernel.shape
  out = [
    (length + sum(pads) - taps) // stride + 1
    for length, pads, taps, stride in zip(
      x.shape[1:3], padding, size, strides, strict=True
    )
  ]
  is_pointwise = size == [1, 1] and not any(map(any, padding))
  if options.get('feature_group_count', 1) > 1 or not (
    is_pointwise or math.prod(out) <= math.prod(size)
  ):
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  ends = [(n - 1) * stride + 1 for n, stride in zip(out, strides, strict=True)]
  patches = [
    x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
    for i, j in itertools.product(*map(range, size))
  ]
  return lax.dot_general(
    jnp.concatenate(patches, axis=-1),
    kernel.reshape(-1, filters),
    (((3,), (0,)), ((), ())),
    precision=options.get('precision'),
  )


def space_to_depth_conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """`lax.conv_general_dilated` with stride 2, by one with stride 1.

  Each 2x2 square of pixels becomes one of four times the channels, and the
  kernel with a row and a column of zeros in front likewise: units that want
  many channels see 12 in the place of 3 (MLPerf's ResNet-50 for TPUs).

  Args:
    x: [B, H, W, C], H and W even.
    kernel: [h, w, C, F], h and w odd.
    strides: (2, 2).
    padding: (h - 1) / 2 and (w - 1) / 2 on both sides.
    **options: of `lax.conv_general_dilated`.
  """
  del strides
  (top, _), (left, _) = padding
  x = jnp.pad(x, ((0, 0), (top + 1, top - 1), (left + 1, left - 1), (0, 0)))
  kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
  x = jnp.moveaxis(x, 2, 3).reshape(batch, height // 2, width // 2, -1)
  h, w, _, filters = kernel.shape
  kernel = kernel.reshape(h // 2, 2, w // 2, 2, channels, filters)
  kernel = jnp.moveaxis(kernel, 1, 2).reshape(h // 2, w // 2, -1, filters)
  return lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', **options)


# What `nn.Conv` takes as `conv_general_dilated`.
FUNCTIONS: dict[str, Any] = {
  'xla': None,
  'matmul': matmul_conv,
  'space_to_depth': space_to_depth_conv,
}
