"""The length of a run, and how its batches are divided."""

import dataclasses
from typing import Any

from resnet.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLength:
  """How long a run is.

  Attributes:
    batch_size: global, images.
    num_steps: updates in the whole run.
    steps_per_epoch: updates in which each image is seen once, on average.
  """

  batch_size: int
  num_steps: int
  steps_per_epoch: float

  def steps(self, epochs: float) -> int:
    """Returns epochs in whole steps."""
    return round(epochs * self.steps_per_epoch)


def create_run_length(config: Any, num_examples: int) -> RunLength:
  """Returns how long the run is.

  Raises:
    InputError: a batch is more than all images, or there are too many steps.
  """
  if config.batch_size > num_examples:
    raise InputError(
      f'batch_size={config.batch_size} is more than the {num_examples} training'
      ' images: take a smaller one.'
    )
  steps_per_epoch = num_examples / config.batch_size
  num_steps = max(1, round(config.num_epochs * steps_per_epoch))
  if num_steps >= 2**31:  # Steps are int32 on the device.
    raise InputError(
      f'num_epochs={config.num_epochs} is {num_steps:,} steps: at most 2**31.'
    )
  return RunLength(
    batch_size=config.batch_size,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
  )


def check_batch_size(config: Any, num_devices: int) -> None:
  """Checks that devices and micro-batches divide the batch.

  Raises:
    InputError: they do not; the message names sizes that work.
  """
  parts = num_devices * config.accumulation_steps
  if config.batch_size % parts:
    below = config.batch_size // parts * parts
    sizes = ' or '.join(str(n) for n in (below, below + parts) if n)
    raise InputError(
      f'batch_size={config.batch_size} is not divisible by {num_devices}'
      f' devices times accumulation_steps={config.accumulation_steps}. Sizes'
      f' that work are multiples of {parts}: --config.batch_size={sizes}'
    )


def check_groups(config: Any, num_devices: int) -> None:
  """Checks that groups of batch statistics divide the batch or micro-batch.

  Raises:
    InputError: they do not.
  """
  group, parts = config.model.bn_group_size, config.accumulation_steps
  if group is None:
    return
  images, what = config.batch_size, 'batch_size'
  if parts > 1:
    # A group over several devices would move the images of a part, and each
    # device would then compute the whole part: all cost and no saving.
    images //= parts * num_devices
    what = f'batch_size / accumulation_steps / {num_devices} devices'
  if images % group:
    raise InputError(
      f'model.bn_group_size={group} does not divide {what}, {images} images:'
      ' take a divisor of that, or fewer accumulation_steps.'
    )


def get_mix_group_size(config: Any) -> int | None:
  """Returns the images that are mixed with each other; None: the whole batch.

  Raises:
    InputError: the number does not divide the batch.
  """
  size = config.augment.mix_group_size
  if size is None:
    return config.model.bn_group_size
  if config.batch_size % size:
    raise InputError(
      f'augment.mix_group_size={size} does not divide batch_size='
      f'{config.batch_size}: take a divisor of that.'
    )
  return size
