"""Random erasing on the device: Zhong et al. 2020, "Random erasing data
augmentation", Algorithm 1.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from resnet.data.augment.crop import BOX_DRAWS, draw_boxes, uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing:
  """Puts noise or the mean colour into a box of some images.

  The published rule is for normalised images, with noise of mean 0 and standard
  deviation 1; `mean` and `std` scale that to the units of the images.

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

  def boxes(self, keys: jax.Array, height: int, width: int) -> jax.Array:
    """Returns top, left, height, width as int32 [B, 4]; zeros: erase nothing.

    As torchvision's `RandomErasing` and timm's: where no box is smaller than
    the image in both directions, nothing is erased.
    """
    draws = uniform(keys, BOX_DRAWS + 1)
    boxes, is_found = draw_boxes(
      draws,
      height,
      width,
      area=self.area,
      aspect=self.aspect,
      is_tall=True,
      fits=lambda h, w: (h < height) & (w < width),
    )
    is_erased = is_found & (draws[:, -1] < self.probability)
    boxes = jnp.stack(boxes, axis=1)
    return jnp.where(is_erased[:, None], boxes, 0)

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
    boxes = self.boxes(both[:, 0], *shape[:2])
    filling = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    if self.fill == 'noise':
      noise = jax.vmap(lambda key: jax.random.normal(key, shape))(both[:, 1])
      filling += noise * jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
    is_inside = _inside(boxes, *shape[:2])[..., None]
    return jnp.where(is_inside, filling, images.astype(jnp.float32))


def create(config: Any) -> RandomErasing:
  """Returns the erasing that the section `augment` of a config asks for."""
  return RandomErasing(
    probability=config.erase_probability,
    area=tuple(config.erase_area),
    aspect=tuple(config.erase_aspect),
    fill=config.erase_fill,
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
