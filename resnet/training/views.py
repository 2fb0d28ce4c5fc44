"""Several views of an evaluation image, whose predictions are averaged."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

VIEWS = ('center', 'flip', 'ten', 'scales')


def cut(images: jax.Array, size: int, which: str) -> list[jax.Array]:
  """Returns views [B, size, size, C] of images [B, H, W, C].

    'center': one crop
    'flip': it and its mirror image
    'ten': the four corners, the centre, and the mirror images of all five
      (Krizhevsky et al. 2012, section 4.1)

  Args:
    images: of at least `size`.
    size: pixels.
    which: one of these.
  """
  height, width = images.shape[1:3]
  down, right = height - size, width - size
  # Where torchvision's CenterCrop puts it.
  center = round(down / 2), round(right / 2)
  places = [center]
  if which == 'ten':
    places = [(0, 0), (0, right), (down, 0), (down, right), center]
  views = [
    images[:, top : top + size, left : left + size] for top, left in places
  ]
  return views if which == 'center' else _with_mirrored(views)


def cut_scales(images: jax.Array, sides: Sequence[int]) -> list[jax.Array]:
  """Returns views [B, side, side, C] of each side, then their mirror images.

  Args:
    images: [B, N, C], the squares one after the other, N = sum(side * side).
    sides: pixels.
  """
  views, start = [], 0
  for side in sides:
    square = images[:, start : start + side * side]
    views.append(square.reshape(len(images), side, side, -1))
    start += side * side
  return _with_mirrored(views)


def _with_mirrored(views: list[jax.Array]) -> list[jax.Array]:
  return [*views, *(view[:, :, ::-1] for view in views)]


def mean_probabilities(logits: list[jax.Array]) -> jax.Array:
  """Mean over the views of softmax(logits), each [B, K] -> [B, K]."""
  return jnp.mean(jnp.stack([jax.nn.softmax(x) for x in logits]), axis=0)
