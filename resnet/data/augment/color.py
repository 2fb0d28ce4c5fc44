"""Random colour changes: torchvision's `ColorJitter` and AlexNet's lighting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.augment.crop import uniform
from resnet.data.augment.operations import apply_operations

_JITTER = ('Brightness', 'Contrast', 'Color')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter:
  """Changes brightness, contrast and saturation at random, in random order.

  Attributes:
    strength: one number s for each of the three; the factor is drawn uniformly
      from [1 - s, 1 + s].
  """

  strength: tuple[float, float, float]

  def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws indices in `_JITTER`, int32 [3, B], and magnitudes [3, B]."""
    draws = uniform(keys, 6)
    kinds = jnp.argsort(draws[:, :3], axis=1).astype(jnp.int32).T
    strength = jnp.array(self.strength, jnp.float32)[kinds]
    return kinds, strength * (2.0 * draws[:, 3:].T - 1.0)

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, C] and keys [B] to uint8 [B, H, W, C]."""
    for kinds, magnitudes in zip(*self.draw(keys), strict=True):
      images = apply_operations(images, kinds, magnitudes, names=_JITTER)
    return images


# Principal components of ImageNet's colours, for colours from 0 to 1, as in
# fb.resnet.torch.
_LIGHTING_STD = (0.2175, 0.0188, 0.0045)
_LIGHTING_AXES = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lighting:
  """Adds one random colour along ImageNet's principal axes to each image.

    pixel += 255 * axes @ (alpha * std),  alpha ~ N(0, strength ** 2)

  Krizhevsky et al. 2012, section 4.1. The result is rounded to integers.

  Attributes:
    strength: standard deviation of alpha; 0.1 in the paper.
  """

  strength: float

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, 3] and keys [B] to uint8 [B, H, W, 3]."""
    alpha = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    axes = 255 * np.array(_LIGHTING_AXES) * _LIGHTING_STD
    axes = jnp.array(axes, jnp.float32)[None]
    color = jnp.sum(axes * (self.strength * alpha)[:, None], axis=2)
    pixels = images.astype(jnp.float32) + color[:, None, None]
    return jnp.clip(jnp.round(pixels), 0.0, 255.0).astype(jnp.uint8)


# Constructors by their name in `config.augment.operations`; each takes
# `config.augment`.
CREATE = {
  'color_jitter': lambda config: ColorJitter(strength=tuple(config.jitter)),
  'lighting': lambda config: Lighting(strength=config.lighting),
}
