"""The images of a whole split in the memory of each device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageCache:
  """Images and labels in stored order, the same on every device.

  Attributes:
    images: uint8 [N, H * W * C]. To take a few images from [N, H, W, C], a TPU
      would copy all of them in each step, because it stores their pixels side
      by side.
    labels: int32 [N].
    image_shape: [H, W, C].
  """

  images: jax.Array
  labels: jax.Array
  image_shape: tuple[int, ...] = dataclasses.field(metadata={'static': True})

  def take(self, index: jax.Array) -> dict[str, jax.Array]:
    """Returns the batch of these indices, int32 [B].

    No image moves between devices. An index of N gives zeros with mask False.
    """
    rows = functools.partial(
      jnp.take, indices=index, axis=0, mode='fill', fill_value=0
    )
    return {
      'image': rows(self.images).reshape(-1, *self.image_shape),
      'label': rows(self.labels),
      'mask': index < len(self.labels),
    }
