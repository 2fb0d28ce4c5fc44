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
_AUGMIX_BINS = 10
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugMix:
  """Mixes an image with chains of operations (Hendrycks et al. 2020).

    share * image + (1 - share) * sum_i weights[i] * chains[i](image)

  As in torchvision's `AugMix` by default, a chain has one to three operations,
  share ~ U(0, 1), weights ~ Dirichlet(1, 1, 1), and each magnitude is one of
  the lowest three of ten. The paper's consistency loss is not included.

  Attributes:
    interpolation: used by the geometric operations.
  """

  interpolation: str

  def draw(
    self, keys: jax.Array, height: int, width: int
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the operations of each image, and the shares of the result.

    Returns:
      Indices in OPERATIONS, int32, and magnitudes, [3, 3, B] by chain and
      layer; shares of the image and of the three chains, [4, B].
    """
    table = _augmix_magnitudes(height, width)
    names = jnp.array([OPERATIONS.index(name) for name in table], jnp.int32)
    magnitudes = jnp.array(np.stack(list(table.values())))
    draws = uniform(keys, 34).T
    number, level, sign = draws[:27].reshape(3, 3, 3, -1)
    number = to_index(number, len(table))
    kinds = names[number]
    magnitudes = magnitudes[number, to_index(level, 3)]
    depth = 1 + to_index(draws[27:30], 3)
    is_done = jnp.arange(3)[None, :, None] < depth[:, None]
    # Exponential draws divided by their sum are uniform on the simplex.
    weights = -jnp.log1p(-draws[30:33])
    share = draws[33:]
    weights *= (1.0 - share) / weights.sum(axis=0, keepdims=True)
    return (
      jnp.where(is_done, kinds, OPERATIONS.index('Identity')),
      with_sign(kinds, magnitudes, sign),
      jnp.concatenate([share, weights]),
    )

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, C] and keys [B] to uint8 [B, H, W, C]."""
    kinds, magnitudes, shares = self.draw(keys, *images.shape[1:3])
    shares = shares[..., None, None, None]
    mixed = shares[0] * images.astype(jnp.float32)
    for chain in range(3):
      changed = images
      for layer in range(3):
        changed = apply_operations(
          changed,
          kinds[chain, layer],
          magnitudes[chain, layer],
          interpolation=self.interpolation,
        )
      mixed += shares[1 + chain] * changed.astype(jnp.float32)
    return jnp.round(mixed).astype(jnp.uint8)


def _augmix_magnitudes(height: int, width: int) -> dict[str, np.ndarray]:
  """Returns ten magnitudes for each of torchvision's 13 operations."""
  names = _WITHOUT_INVERT[1:]
  table = magnitude_table(names, _AUGMIX_BINS, height, width, is_wide=False)
  steps = np.linspace(0.0, 1.0, _AUGMIX_BINS, dtype=np.float32)
  return table | {
    'TranslateX': steps * width / 3,
    'TranslateY': steps * height / 3,
    'Posterize': 4 - np.round(4 * steps),
  }


# Constructors by their name in `config.augment.operations`; each takes
# `config.augment`.
CREATE = {
  'randaugment': lambda config: RandomOperations(
    **{x.name: config[x.name] for x in dataclasses.fields(RandomOperations)}
  ),
  'trivialaugment_wide': lambda config: RandomOperations(
    interpolation=config.interpolation
  ),
  'augmix': lambda config: AugMix(interpolation=config.interpolation),
}
