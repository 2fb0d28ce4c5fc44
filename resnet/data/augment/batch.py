"""From the fields of `config.augment` to what a step does to its images."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from resnet.data.augment.color import ColorJitter, Lighting
from resnet.data.augment.crop import Augment, fold_in
from resnet.data.augment.erasing import RandomErasing
from resnet.data.augment.mixing import Mixing
from resnet.data.augment.policies import AutoAugment, RandomOperations
from resnet.errors import InputError, nearest

_ERASING = 'erasing'
# Of the keys: those of crop and flip are below.
_FIRST_STREAM = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
  """What is done to training images after crop and flip.

  Attributes:
    operations: on uint8 images, in this order.
    erasing: after them; None: none.
    mixing: of images with each other, last; None: none.
  """

  operations: tuple[Augment, ...] = ()
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
    """Does all but the mixing; uint8 [B, H, W, C], or float32 if erased.

    Args:
      images: uint8 [B, H, W, C].
      keys: [B], one an image.
      mean: of each channel, in units of uint8 pixels.
      std: likewise.
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

  Raises:
    InputError: an unknown operation (the nearest names are listed), a wrong
      order, or one that is not for these images.
  """
  interpolation = config.interpolation
  created: dict[str, Augment] = {
    'randaugment': RandomOperations(
      num_layers=config.num_layers,
      magnitude=config.magnitude,
      magnitude_std=config.magnitude_std,
      operation_probability=config.operation_probability,
      interpolation=interpolation,
    ),
    'trivialaugment_wide': RandomOperations(
      num_layers=1,
      magnitude=None,
      magnitude_std=0.0,
      operation_probability=1.0,
      interpolation=interpolation,
    ),
    **{
      f'autoaugment_{data}': AutoAugment(data=data, interpolation=interpolation)
      for data in ('imagenet', 'cifar')
    },
    'color_jitter': ColorJitter(strength=tuple(config.jitter)),
    'lighting': Lighting(strength=config.lighting),
  }
  names = _check_operations(config.operations, (*created, _ERASING))
  if channels != 3 and 'lighting' in names:
    raise InputError(
      f"augment.operations={names}: 'lighting' needs images of red, green and"
      f' blue, and these have {channels} channel(s): leave it out.'
    )
  erasing = RandomErasing(
    probability=config.erase_probability,
    area=tuple(config.erase_area),
    aspect=tuple(config.erase_aspect),
    fill=config.erase_fill,
  )
  mixing = Mixing(
    mixup_alpha=config.mixup_alpha,
    cutmix_alpha=config.cutmix_alpha,
    probability=config.mix_probability,
    cutmix_share=config.cutmix_share,
    group_size=mix_group_size,
  )
  return Augmentation(
    operations=tuple(created[name] for name in names if name != _ERASING),
    erasing=erasing if _ERASING in names else None,
    mixing=mixing if mixing.is_on else None,
  )


def _check_operations(operations: Any, known: Sequence[str]) -> tuple[str, ...]:
  """Returns the names; a command line may bring anything."""
  if not isinstance(operations, tuple | list):
    raise InputError(
      f'augment.operations={operations!r} is not a list of names: type'
      f' --config.augment.operations="(\'{_ERASING}\',)"'
    )
  names = tuple(operations)
  for name in names:
    if name not in known:
      raise InputError(
        f'augment.operations has {name!r}, which there is not.'
        f'{nearest(str(name), known)}'
      )
  if _ERASING in names[:-1]:
    others = tuple(name for name in names if name != _ERASING)
    raise InputError(
      f'augment.operations={names}: {_ERASING!r} works on normalised images,'
      ' once, and the others on pixels, so it must be last:'
      f' --config.augment.operations="{(*others, _ERASING)}"'
    )
  return names
