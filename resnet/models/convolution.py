"""Convolution by XLA's operation or by a matrix product.

XLA recomputes elementwise operations in every place that uses their result. On
a CPU, the gradient of each kernel recomputes the residual stream from the stem
on, with strided reads. A barrier before each convolution makes XLA store its
input once: a training step of ResNet-20 takes about 65% of the time. XLA keeps
the barrier only with an option of `resnet.training.compiler`.

XLA's CPU convolution is slow for 1x1 kernels: with a matrix product instead, a
training step of ResNet-50 takes about 60% of the time. It is also slow if the
kernel is larger than its input, such as the 2x2 pixels in the last stage of a
CIFAR net on 8x8 images: there, a product over patches halves the step time.
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def fastest_backend() -> str:
  """Returns the faster of CONV_BACKENDS on JAX's default backend."""
  return 'matmul' if jax.default_backend() == 'cpu' else 'xla'


def matmul_conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """Convolves x [B, H, W, C] with a kernel [h, w, C, F].

  It replaces `lax.conv_general_dilated`. Without groups, it computes a matrix
  product if the kernel is 1x1 without padding, or if the kernel has at least as
  many elements (h * w) as the result has pixels. In all other cases, it calls
  XLA's convolution. x is stored before it is used.
  """
  x = lax.optimization_barrier(x)
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


# The argument `conv_general_dilated` of `nn.Conv`, by backend.
CONV_BACKENDS: dict[str, Any] = {'xla': None, 'matmul': matmul_conv}
