"""Random colours: torchvision's `ColorJitter`, and the lighting of AlexNet."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.augment.crop import uniform
from resnet.data.augment.geometry import round_to_bits
from resnet.data.augment.operations import apply_operations


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter:
  """Brightness, contrast, saturation and hue, at random, in random order.

  Attributes:
    strength: of each of the four: the factor is uniform in 1 - s .. 1 + s, and
      the shift of the hue in -s .. s of a turn. Without hue (0) nothing is
      drawn for it.
  """

  strength: tuple[float, float, float, float]

  @property
  def names(self) -> tuple[str, ...]:
    """Of the operations that an image gets."""
    names = ('Brightness', 'Contrast', 'Color', 'Hue')
    return names if self.strength[3] else names[:3]

  def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns kinds int32 [n, B], places in `names`; magnitudes [n, B]."""
    count = len(self.names)
    draws = uniform(keys, 2 * count)
    kinds = jnp.argsort(draws[:, :count], axis=1).astype(jnp.int32).T
    strength = jnp.array(self.strength, jnp.float32)[kinds]
    return kinds, strength * (2.0 * draws[:, count:].T - 1.0)

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """uint8 [B, H, W, C] and keys [B] -> uint8 [B, H, W, C]."""
    for kinds, magnitudes in zip(*self.draw(keys), strict=True):
      changed = apply_operations(images, kinds, magnitudes, names=self.names)
      if 'Hue' in self.names:
        is_hue = (kinds == self.names.index('Hue'))[:, None, None, None]
        changed = jnp.where(is_hue, shift_hue(images, magnitudes), changed)
      images = changed
    return images


# With the 12 bits of six times a pixel, and their sum, they fill a float32.
_SHIFT_BITS = 11


def shift_hue(images: jax.Array, shifts: jax.Array) -> jax.Array:
  """Turns the hue, as torchvision's `adjust_hue`; grey images stay.

  Of the largest channel of a pixel and the range between largest and smallest,
  each channel has

    largest - range * clip(2 - |(6 * hue + n) mod 6 - 3|, 0, 1)

  where hue is 0 .. 1, and n is 0 for red, 4 for green, 2 for blue. All is
  counted in units of 1 / range, so that no division rounds.

  Args:
    images: uint8 [B, H, W, C], of 1 or 3 channels.
    shifts: of a turn, -0.5 to 0.5, float32 [B].

  Returns:
    uint8 [B, H, W, C].
  """
  if images.shape[-1] == 1:
    return images
  red, green, blue = jnp.moveaxis(images.astype(jnp.float32), -1, 0)
  largest = jnp.maximum(jnp.maximum(red, green), blue)
  reach = largest - jnp.minimum(jnp.minimum(red, green), blue)
  hue = jnp.where(
    largest == red,
    green - blue,
    jnp.where(
      largest == green, 2.0 * reach + blue - red, 4.0 * reach + red - green
    ),
  )
  hue += reach * round_to_bits(6.0 * shifts, _SHIFT_BITS)[:, None, None]
  turn = 6.0 * jnp.maximum(reach, 1.0)
  distances = [
    jnp.abs(jnp.mod(hue + n * reach, turn) - 3.0 * reach) for n in (0, 4, 2)
  ]
  values = [
    largest - jnp.clip(2.0 * reach - distance, 0.0, reach)
    for distance in distances
  ]
  # From 0 .. 1 torchvision goes to whole pixels like this.
  scaled = jnp.stack(values, axis=-1) * (255.999 / 255.0)
  return scaled.astype(jnp.uint8)


# Of the colours of ImageNet, 0 to 1, as AlexNet's and Torch's code have them.
_LIGHTING_STD = (0.2175, 0.0188, 0.0045)
_LIGHTING_AXES = (
  (-0.5675, 0.7192, 0.4009),
  (-0.5808, -0.0045, -0.8140),
  (-0.5836, -0.6948, 0.4203),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lighting:
  """Adds to all pixels of an image one colour along the main axes of ImageNet.

    pixel += 255 * axes @ (alpha * std),  alpha ~ N(0, strength ** 2)

  Krizhevsky et al. 2012, section 4.1; the result is rounded to whole pixels.

  Attributes:
    strength: standard deviation of alpha; 0.1 in the paper.
  """

  strength: float

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] and keys [B] -> uint8 [B, H, W, 3]."""
    alpha = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    axes = 255 * np.array(_LIGHTING_AXES) * _LIGHTING_STD
    axes = jnp.array(axes, jnp.float32)[None]
    color = jnp.sum(axes * (self.strength * alpha)[:, None], axis=2)
    pixels = images.astype(jnp.float32) + color[:, None, None]
    return jnp.clip(jnp.round(pixels), 0.0, 255.0).astype(jnp.uint8)
