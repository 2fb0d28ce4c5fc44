"""Random erasing on the device: Zhong et al. 2020, "Random erasing data
augmentation", Algorithm 1.
"""

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

_TRIES = 10


def erase_boxes(
  keys: jax.Array,
  height: int,
  width: int,
  *,
  probability: float,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """Returns top, left, height, width as int32 [B, 4]; zeros: erase nothing.

  As torchvision's `RandomErasing` and timm's: the share of the area is
  uniform, height / width log-uniform; of ten tries the first is taken whose
  box is smaller than the image in both directions, and put anywhere with equal
  chances; after ten that are not, nothing is erased.

  Args:
    keys: [B], one an image.
    height: of the images, pixels.
    width: likewise.
    probability: that an image is erased.
    area: least and largest share of the image's area.
    aspect: least and largest height / width.
  """
  draws = jax.vmap(lambda key: jax.random.uniform(key, (2 * _TRIES + 3,)))(keys)
  pairs = draws[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
  low, high = math.log(aspect[0]), math.log(aspect[1])
  target = height * width * (area[0] + (area[1] - area[0]) * pairs[..., 0])
  ratio = jnp.exp(low + (high - low) * pairs[..., 1])
  h = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
  fits = (h < height) & (w < width)
  first = jnp.argmax(fits, axis=1)[:, None]
  h, w = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (h, w))
  # (float32 may round a number near 1 up to the end itself.)
  top, left = (
    jnp.clip((draw * (room + 1).astype(jnp.float32)).astype(jnp.int32), 0, room)
    for draw, room in ((draws[:, -3], height - h), (draws[:, -2], width - w))
  )
  is_erased = fits.any(axis=1) & (draws[:, -1] < probability)
  boxes = jnp.stack([top, left, h, w], axis=1)
  return jnp.where(is_erased[:, None], boxes, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing:
  """Puts noise or the mean colour into a box of some images.

  It belongs after normalisation, where the mean colour is zero and the noise
  is normal with deviation 1; so for images in other units their mean and
  standard deviation are asked for, and the result is the same.

  Attributes:
    probability: that an image is erased.
    area: least and largest share of the image's area.
    aspect: least and largest height / width.
    fill: 'noise', of its own in each pixel and channel (timm's 'pixel'), or
      'mean' (torchvision's default).
  """

  probability: float
  area: tuple[float, float]
  aspect: tuple[float, float]
  fill: str

  def __call__(
    self,
    images: jax.Array,
    keys: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
  ) -> jax.Array:
    """Erases a box of some images.

    Args:
      images: [B, H, W, C], uint8 or float32.
      keys: [B], one an image.
      mean: of each channel, in the units of the images; 0 if normalised.
      std: likewise; 1 if normalised.

    Returns:
      float32 [B, H, W, C].
    """
    shape = images.shape[1:]
    both = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    boxes = erase_boxes(
      both[:, 0],
      *shape[:2],
      probability=self.probability,
      area=self.area,
      aspect=self.aspect,
    )
    filling = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    if self.fill == 'noise':
      noise = jax.vmap(lambda key: jax.random.normal(key, shape))(both[:, 1])
      filling += noise * jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
    return jnp.where(
      _inside(boxes, *shape[:2])[..., None],
      filling,
      images.astype(jnp.float32),
    )


def _inside(boxes: jax.Array, height: int, width: int) -> jax.Array:
  """Returns whether a pixel is in the box, [B, height, width]."""

  def covered(side: int, start: jax.Array, length: jax.Array) -> jax.Array:
    places = jnp.arange(side, dtype=jnp.int32)[None]
    start, end = start[:, None], (start + length)[:, None]
    return (places >= start) & (places < end)

  rows = covered(height, boxes[:, 0], boxes[:, 2])
  columns = covered(width, boxes[:, 1], boxes[:, 3])
  return rows[:, :, None] & columns[:, None, :]
