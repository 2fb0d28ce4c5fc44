"""Several views of an evaluation image, whose predictions are averaged."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

VIEWS = ('center', 'flip', 'ten_crop', 'scales')


def unpack(images: jax.Array, sides: Sequence[int]) -> list[jax.Array]:
  """Returns the views of `data.scales.ViewsTransform`.

  Args:
    images: [B, N, C], the squares one after the other, N = sum(side * side).
    sides: of the squares, pixels.

  Returns:
    [B, side, side, C] for each side.
  """
  views, start = [], 0
  for side in sides:
    square = images[:, start : start + side * side]
    views.append(square.reshape(len(images), side, side, -1))
    start += side * side
  return views


def with_mirrored(views: list[jax.Array]) -> list[jax.Array]:
  """Returns the views [B, H, W, C], and the mirror image of each."""
  return [*views, *(view[:, :, ::-1] for view in views)]


def mean_log_probabilities(logits: list[jax.Array]) -> jax.Array:
  """Logarithm of the mean over the views of softmax(logits), each [B, K]."""
  views = jnp.stack([jax.nn.log_softmax(x) for x in logits])
  return jax.nn.logsumexp(views, axis=0) - math.log(len(logits))
