"""Pooling: the maximum of a window, and filters against aliasing."""

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


def stem_max_pool(x: jax.Array, *, backend: str = 'xla') -> jax.Array:
  """Applies 3x3 max-pooling of stride 2, padded by one pixel of -inf.

  `backend` is one of `convolution.CONV_BACKENDS`.
  """
  return _max_pool(x, 2, backend)


def stem_blur_pool(x: jax.Array, *, backend: str = 'xla') -> jax.Array:
  """Applies 3x3 max-pooling of stride 1, then `blur_pool` (Zhang 2019)."""
  return blur_pool(_max_pool(x, 1, backend))


def blur_pool(x: jax.Array) -> jax.Array:
  """Halves the resolution without aliasing: a binomial filter, then stride 2.

  The filter is [1, 2, 1] / 4 along rows and columns, with reflected borders, as
  in Zhang 2019, "Making convolutional networks shift-invariant again", and
  timm's `BlurPool2d`. [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C].
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
  for axis in (1, 2):
    first, middle, last = (
      lax.slice_in_dim(x, start, x.shape[axis] - 2 + start, 2, axis)
      for start in range(3)
    )
    x = (first + 2 * middle + last) / 4
  return x


def _max_pool(x: jax.Array, stride: int, backend: str) -> jax.Array:
  pads = ((1, 1), (1, 1))
  if backend == 'xla':
    return nn.max_pool(x, (3, 3), strides=(stride, stride), padding=pads)  # pyright: ignore[reportArgumentType]
  # On a CPU, the gradient of XLA's operation takes five times as long, because
  # it finds the largest pixel of each window by reducing pairs of a value and
  # an index. Values and gradients are equal, bit for bit.
  x = lax.optimization_barrier(x)
  rows, columns = ((size - 1) // stride + 1 for size in x.shape[1:3])
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  taps = [
    padded[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (columns - 1) * stride + 1 : stride,
    ]
    for i in range(3)
    for j in range(3)
  ]
  largest, position = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
  for i, tap in enumerate(taps):
    # The first of equal pixels gets the gradient, and NaN is the largest.
    is_larger = (tap > largest) | jnp.isnan(tap)
    largest = jnp.where(is_larger, tap, largest)
    position = jnp.where(is_larger, jnp.uint8(i), position)
  # The backward pass needs the position alone; store it.
  position = lax.optimization_barrier(position)
  result = taps[0]
  for i, tap in enumerate(taps):
    result = jnp.where(position == i, tap, result)
  return result
