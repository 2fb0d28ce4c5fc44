"""Random operations with random magnitudes: RandAugment and its relatives.

Operations, magnitudes and probabilities are those of the `transforms.v2`
classes of the same names in torchvision.
"""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.augment.crop import fold_in, uniform
from resnet.data.augment.operations import OPERATIONS, apply_operations

BINS = 31
_SIGNED = frozenset(OPERATIONS[1:10])
_WITHOUT_INVERT = OPERATIONS[:-1]


def magnitude_table(
  names: Sequence[str], bins: int, height: int, width: int, *, is_wide: bool
) -> dict[str, np.ndarray]:
  """Returns evenly spaced magnitudes [bins] of each operation.

  The ranges are those of Mueller and Hutter 2021, Table 1, if `is_wide`, and
  otherwise those of Cubuk et al. 2019, Table 6, for images of [height, width].
  """
  color, bits = (0.99, 6) if is_wide else (0.9, 4)
  most = {
    'ShearX': 0.99 if is_wide else 0.3,
    'ShearY': 0.99 if is_wide else 0.3,
    'TranslateX': 32.0 if is_wide else 150 / 331 * width,
    'TranslateY': 32.0 if is_wide else 150 / 331 * height,
    'Rotate': 135.0 if is_wide else 30.0,
    **dict.fromkeys(('Brightness', 'Color', 'Contrast', 'Sharpness'), color),
  }
  steps = np.linspace(0.0, 1.0, bins)
  magnitudes = {name: most.get(name, 0.0) * steps for name in names}
  magnitudes['Posterize'] = 8 - np.round(steps * bits)
  magnitudes['Solarize'] = 1.0 - steps
  return {name: magnitudes[name].astype(np.float32) for name in names}


def to_index(draws: jax.Array, count: int) -> jax.Array:
  """Converts uniform numbers in [0, 1) to integers 0 .. count - 1."""
  # Clip because float32 may round the product of a draw near 1 up to `count`.
  return jnp.minimum((draws * count).astype(jnp.int32), count - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOperations:
  """Applies random operations out of 14: RandAugment and TrivialAugment.

  Attributes:
    num_layers: number of operations per image, drawn with replacement.
    magnitude: index of the magnitude, 0 to 30, for all operations (Cubuk et
      al. 2020, RandAugment). None draws one for each operation from the wide
      space (Mueller and Hutter 2021, TrivialAugment).
    magnitude_std: timm's `mstd`, in units of `magnitude`. Each magnitude is
      drawn from a normal distribution around `magnitude`, clipped to 0 .. 30,
      and interpolated between the 31 values.
    operation_probability: timm's `p`, the probability that an operation is
      applied at all.
    interpolation: used by the geometric operations.
  """

  num_layers: int = 1
  magnitude: int | None = None
  magnitude_std: float = 0.0
  operation_probability: float = 1.0
  interpolation: str

  def draw(
    self, keys: jax.Array, height: int, width: int
  ) -> tuple[jax.Array, jax.Array]:
    """Draws one layer: indices in OPERATIONS, int32, and magnitudes, [B]."""
    is_wide = self.magnitude is None
    table = magnitude_table(
      _WITHOUT_INVERT, BINS, height, width, is_wide=is_wide
    )
    magnitudes = jnp.array(np.stack(list(table.values())))
    draws = uniform(keys, 3)
    kinds = to_index(draws[:, 0], len(table))
    if self.magnitude is None:
      magnitudes = magnitudes[kinds, to_index(draws[:, 1], BINS)]
    elif not self.magnitude_std:
      magnitudes = magnitudes[kinds, self.magnitude]
    else:
      noise = jax.vmap(jax.random.normal)(fold_in(keys, 0))
      levels = self.magnitude + self.magnitude_std * noise
      magnitudes = _interpolate(magnitudes, kinds, levels)
    magnitudes = with_sign(kinds, magnitudes, draws[:, 2])
    if self.operation_probability < 1:
      is_done = uniform(fold_in(keys, 1), 1)[:, 0] < self.operation_probability
      kinds = jnp.where(is_done, kinds, OPERATIONS.index('Identity'))
    return kinds, magnitudes

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, C] and keys [B] to uint8 [B, H, W, C]."""
    for layer in range(self.num_layers):
      kinds, magnitudes = self.draw(fold_in(keys, layer), *images.shape[1:3])
      images = apply_operations(
        images, kinds, magnitudes, interpolation=self.interpolation
      )
    return images


def _interpolate(
  table: jax.Array, kinds: jax.Array, levels: jax.Array
) -> jax.Array:
  """Interpolates magnitudes [B] at `levels`, float32 [B], within 0 .. 30."""
  levels = jnp.clip(levels, 0.0, BINS - 1.0)
  below = jnp.minimum(levels.astype(jnp.int32), BINS - 2)
  low, high = table[kinds, below], table[kinds, below + 1]
  magnitudes = low + (levels - below.astype(jnp.float32)) * (high - low)
  # Round, because 'Posterize' would truncate a fraction of a bit.
  is_bits = kinds == OPERATIONS.index('Posterize')
  return jnp.where(is_bits, jnp.round(magnitudes), magnitudes)


def with_sign(
  kinds: jax.Array, magnitudes: jax.Array, draws: jax.Array
) -> jax.Array:
  """Negates a magnitude if its operation has a direction and draw < 0.5."""
  is_signed = jnp.array([name in _SIGNED for name in OPERATIONS])[kinds]
  return jnp.where(is_signed & (draws < 0.5), -magnitudes, magnitudes)


# Constructors by their name in `config.augment.operations`; each takes
# `config.augment`.
CREATE = {
  'randaugment': lambda config: RandomOperations(
    **{x.name: config[x.name] for x in dataclasses.fields(RandomOperations)}
  ),
  'trivialaugment_wide': lambda config: RandomOperations(
    interpolation=config.interpolation
  ),
}
