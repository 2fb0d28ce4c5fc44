"""Convolution as XLA has it, or as a matrix product.

XLA's convolution for the CPU is slow where the kernel is 1x1: a matrix product
reduces a training step of ResNet-50 to about 0.6 of its time. It is slow, too,
where the kernel is larger than the image, as in the last stage of a net for
CIFAR on 8x8 pixels: there a product of patches halves the time of a step.
"""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


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


# What `nn.Conv` takes as `conv_general_dilated`, by backend.
CONV_BACKENDS: dict[str, Any] = {'xla': None, 'matmul': matmul_conv}
