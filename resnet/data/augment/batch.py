"""Creates the augmentation of `config.augment`."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from resnet.data.augment import autoaugment, color, erasing, policies
from resnet.data.augment.crop import ImageOperation, fold_in
from resnet.data.augment.erasing import RandomErasing
from resnet.data.augment.mixing import Mixing
from resnet.errors import InputError, nearest

# The first key stream of the operations; crop and flip use lower ones.
_FIRST_STREAM = 16
_CREATE = {
  **policies.CREATE,
  **autoaugment.CREATE,
  **color.CREATE,
  'erasing': erasing.create,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """Augments training images after crop and flip.

  Attributes:
    operations: applied to uint8 images, in this order.
    erasing: applied after the operations, or None.
    mixing: mixup and cutmix, which the training step applies last, or None.
  """

  operations: tuple[ImageOperation, ...] = ()
  erasing: RandomErasing | None = None
  mixing: Mixing | None = None

  def __call__(
    self,
    images: jax.Array,
    keys: jax.Array,
    *,
    mean: Sequence[float],
    std: Sequence[float],
  ) -> jax.Array:
    """Applies the operations and erasing.

    Maps uint8 [B, H, W, C] and keys [B] to uint8 [B, H, W, C], or to float32 if
    erasing is on. Mean and std of each channel are in units of uint8 pixels.
    """
    for stream, operation in enumerate(self.operations, start=_FIRST_STREAM):
      images = operation(images, fold_in(keys, stream))
    if self.erasing is None:
      return images
    stream = _FIRST_STREAM + len(self.operations)
    return self.erasing(images, fold_in(keys, stream), mean=mean, std=std)


def create_augmentation(
  config: Any, *, channels: int, mix_group_size: int | None
) -> Augmentation:
  """Creates the augmentation of `config.augment` for images of `channels`.

  See `Mixing.group_size` for `mix_group_size`.

  Raises:
    InputError: an operation is unknown, or does not fit the images.
  """
  mixing = Mixing(
    mixup_alpha=config.mixup_alpha,
    cutmix_alpha=config.cutmix_alpha,
    probability=config.mix_probability,
    cutmix_share=config.cutmix_share,
    group_size=mix_group_size,
  )
  given = config.operations
  # The command line may give a single name.
  names = tuple(given) if isinstance(given, tuple | list) else (given,)
  for name in names:
    if str(name) not in _CREATE:
      raise InputError(
        f'augment.operations={given!r}: {name!r} is not an augmentation.'
        f'{nearest(str(name), _CREATE)}'
      )
  if 'erasing' in names[:-1]:
    raise InputError(
      f"augment.operations={names}: 'erasing' must come once and last, because"
      ' it returns float32 images and the others need uint8.'
    )
  if channels != 3 and 'lighting' in names:
    raise InputError(
      f"augment.operations={names}: 'lighting' needs RGB images, but these have"
      f' {channels} channel(s): remove it.'
    )
  created: list[Any] = [_CREATE[name](config) for name in names]
  erasing_ = created.pop() if 'erasing' in names else None
  return Augmentation(
    operations=tuple(created),
    erasing=erasing_,
    mixing=mixing if mixing.is_on else None,
  )
