"""AutoAugment's policies for ImageNet and CIFAR (Cubuk et al. 2019).

Operations, magnitudes and probabilities are those of torchvision's
`AutoAugment`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.augment.crop import uniform
from resnet.data.augment.operations import OPERATIONS, apply_operations
from resnet.data.augment.policies import magnitude_table, to_index, with_sign

BINS = 10

# Cubuk et al. 2019, Tables 7 and 9. A policy is two operations, each with its
# probability in tenths and the index of its magnitude, 0 to 9; '-' where the
# operation has no magnitude.
_CIFAR = """
  Invert 1 - Contrast 2 6          Rotate 7 2 TranslateX 3 9
  Sharpness 8 1 Sharpness 9 3      ShearY 5 8 TranslateY 7 9
  AutoContrast 5 - Equalize 9 -    ShearY 2 7 Posterize 3 7
  Color 4 3 Brightness 6 7         Sharpness 3 9 Brightness 7 9
  Equalize 6 - Equalize 5 -        Contrast 6 7 Sharpness 6 5
  Color 7 7 TranslateX 5 8         Equalize 3 - AutoContrast 4 -
  TranslateY 4 3 Sharpness 2 6     Brightness 9 6 Color 2 8
  Solarize 5 2 Invert 0 -          Equalize 2 - AutoContrast 6 -
  Equalize 2 - Equalize 6 -        Color 9 9 Equalize 6 -
  AutoContrast 8 - Solarize 2 8    Brightness 1 3 Color 7 0
  Solarize 4 5 AutoContrast 9 -    TranslateY 9 9 TranslateY 7 9
  AutoContrast 9 - Solarize 8 3    Equalize 8 - Invert 1 -
  TranslateY 7 9 AutoContrast 9 -
"""
_IMAGENET = """
  Posterize 4 8 Rotate 6 9         Solarize 6 5 AutoContrast 6 -
  Equalize 8 - Equalize 6 -        Posterize 6 7 Posterize 6 6
  Equalize 4 - Solarize 2 4        Equalize 4 - Rotate 8 8
  Solarize 6 3 Equalize 6 -        Posterize 8 5 Equalize 10 -
  Rotate 2 3 Solarize 6 8          Equalize 6 - Posterize 4 6
  Rotate 8 8 Color 4 0             Rotate 4 9 Equalize 6 -
  Equalize 0 - Equalize 8 -        Invert 6 - Equalize 10 -
  Color 6 4 Contrast 10 8          Rotate 8 8 Color 10 2
  Color 8 8 Solarize 8 7           Sharpness 4 7 Invert 6 -
  ShearX 6 5 Equalize 10 -         Color 4 0 Equalize 6 -
  Equalize 4 - Solarize 2 4        Solarize 6 5 AutoContrast 6 -
  Invert 6 - Equalize 10 -         Color 6 4 Contrast 10 8
  Equalize 8 - Equalize 6 -
"""
_POLICIES = {'imagenet': _IMAGENET, 'cifar': _CIFAR}


def policies(data: str) -> np.ndarray:
  """Returns the policies of 'imagenet' or 'cifar' as int32 [25, 2, 3].

  The last axis holds the index in OPERATIONS, the probability in tenths and the
  index of the magnitude.
  """
  words = _POLICIES[data].split()
  numbers = [
    (OPERATIONS.index(name), int(tenths), 0 if level == '-' else int(level))
    for name, tenths, level in zip(*[iter(words)] * 3, strict=True)
  ]
  return np.array(numbers, np.int32).reshape(25, 2, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment:
  """Applies one of 25 policies, chosen at random, to each image.

  A policy is two operations, each applied with its own probability (Cubuk et
  al. 2019).

  Attributes:
    data: the data set that the policies were learned on, 'imagenet' or 'cifar'.
    interpolation: used by the geometric operations.
  """

  data: str
  interpolation: str

  def draw(
    self, keys: jax.Array, height: int, width: int
  ) -> tuple[jax.Array, jax.Array]:
    """Draws indices in OPERATIONS, int32, and magnitudes, [2, B] by layer."""
    table = magnitude_table(OPERATIONS, BINS, height, width, is_wide=False)
    levels = jnp.array(np.stack(list(table.values())))
    draws = uniform(keys, 5)
    chosen = jnp.array(policies(self.data))[to_index(draws[:, 0], 25)]
    kinds, tenths, places = jnp.moveaxis(chosen, (2, 1), (0, 1))
    magnitudes = with_sign(kinds, levels[kinds, places], draws[:, 3:].T)
    is_done = tenths.astype(jnp.float32) / 10 > draws[:, 1:3].T
    return jnp.where(is_done, kinds, 0), magnitudes

  def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
    """Maps uint8 [B, H, W, C] and keys [B] to uint8 [B, H, W, C]."""
    layers = self.draw(keys, *images.shape[1:3])
    for kinds, magnitudes in zip(*layers, strict=True):
      images = apply_operations(
        images, kinds, magnitudes, interpolation=self.interpolation
      )
    return images


# Constructors by their name in `config.augment.operations`; each takes
# `config.augment`.
CREATE = {
  'autoaugment_imagenet': lambda config: AutoAugment(
    data='imagenet', interpolation=config.interpolation
  ),
  'autoaugment_cifar': lambda config: AutoAugment(
    data='cifar', interpolation=config.interpolation
  ),
}
