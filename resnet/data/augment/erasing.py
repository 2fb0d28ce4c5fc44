"""Random erasing on the device.

Zhong et al. 2020, "Random erasing data augmentation", Algorithm 1.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from resnet.data.augment.crop import BOX_DRAWS, box_mask, draw_boxes, uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomErasing:
  """Fills a random box of some images with noise or the mean colour.

  The published rule is for normalised images, with noise of mean 0 and standard
  deviation 1; `mean` and `std` scale the noise to the units of the images.

  Attributes:
    probability: probability that an image is erased.
    area: smallest and largest area of the box, as a share of the image.
    aspect: smallest and largest height / width of the box.
    fill: 'noise', drawn for each pixel and channel (timm's 'pixel'), or 'mean'
      (torchvision's default).
  """

  probability: float
  area: tuple[float, float]
  aspect: tuple[float, float]
  fill: str

  def boxes(self, keys: jax.Array, height: int, width: int) -> jax.Array:
    """Draws one box per image: top, left, height and width, int32 [B, 4].

    A row of zeros erases nothing. As in torchvision and timm, it is also the
    result if no box that was tried is smaller than the image in both dims.
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
    return jnp.where(is_erased[:, None], jnp.stack(boxes, axis=1), 0)

  def __call__(
    self,
    images: jax.Array,
    keys: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
  ) -> jax.Array:
    """Erases a box of some images.

    Maps [B, H, W, C], uint8 or float32, and keys [B] to float32 [B, H, W, C].
    Mean and std of each channel are in the units of the images: 0 and 1 if they
    are normalised.
    """
    height, width, _ = shape = images.shape[1:]
    both = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    boxes = self.boxes(both[:, 0], height, width)
    filling = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    if self.fill == 'noise':
      noise = jax.vmap(lambda key: jax.random.normal(key, shape))(both[:, 1])
      filling += noise * jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
    masks = jax.vmap(lambda box: box_mask(box, height, width))(boxes)
    return jnp.where(masks[..., None], filling, images.astype(jnp.float32))


def create(config: Any) -> RandomErasing:
  """Creates the erasing of `config.augment`."""
  return RandomErasing(
    probability=config.erase_probability,
    area=tuple(config.erase_area),
    aspect=tuple(config.erase_aspect),
    fill=config.erase_fill,
  )
