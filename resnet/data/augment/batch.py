"""From the fields of `config.augment` to what a step does to its images."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from resnet.data.augment import autoaugment, color, erasing, policies
from resnet.data.augment.crop import ImageOperation, fold_in
from resnet.data.augment.erasing import RandomErasing
from resnet.data.augment.mixing import Mixing
from resnet.errors import InputError, nearest

# The first key stream; those of crop and flip are below.
_FIRST_STREAM = 16
_CREATE = {
  **policies.CREATE,
  **autoaugment.CREATE,
  **color.CREATE,
  'erasing': erasing.create,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """What is done to training images after crop and flip.

  Attributes:
    operations: on uint8 images, in this order.
    erasing: after them; None: none.
    mixing: of images with each other, last; None: none.
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
    """Applies operations and erasing to uint8 images [B, H, W, C], keys [B].

    Mean and standard deviation of each channel are in units of uint8 pixels.
    Returns uint8 [B, H, W, C], or float32 if erasing is on.
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
  """Returns what the section `augment` of a config asks for.

  Args:
    config: the section.
    channels: of the images.
    mix_group_size: images that are mixed among themselves; None: the batch.
  """
  mixing = Mixing(
    mixup_alpha=config.mixup_alpha,
    cutmix_alpha=config.cutmix_alpha,
    probability=config.mix_probability,
    cutmix_share=config.cutmix_share,
    group_size=mix_group_size,
  )
  # A command line may bring anything.
  given = config.operations
  names = tuple(given) if isinstance(given, tuple | list) else (given,)
  for name in names:
    if str(name) not in _CREATE:
      raise InputError(
        f'augment.operations={given!r}: {name!r} is not an augmentation.'
        f'{nearest(str(name), _CREATE)}'
      )
  if 'erasing' in names[:-1]:
    raise InputError(
      f"augment.operations={names}: 'erasing' must be last and once, because it"
      ' works on normalised images and the others on pixels.'
    )
  if channels != 3 and 'lighting' in names:
    raise InputError(
      f"augment.operations={names}: 'lighting' needs images of red, green and"
      f' blue, and these have {channels} channel(s): leave it out.'
    )
  chosen: list[Any] = [_CREATE[name](config) for name in names]
  last = chosen.pop() if 'erasing' in names else None
  return Augmentation(
    operations=tuple(chosen),
    erasing=last,
    mixing=mixing if mixing.is_on else None,
  )
