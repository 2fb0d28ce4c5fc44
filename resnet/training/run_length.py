"""The length of a run, and the sizes that divide its batches."""

import dataclasses
from typing import Any

from resnet.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLength:
  """The length of a run.

  Attributes:
    batch_size: images per update over all devices.
    num_steps: updates in the whole run.
    steps_per_epoch: updates in which each image is seen once, on average.
  """

  batch_size: int
  num_steps: int
  steps_per_epoch: float

  def steps(self, epochs: float) -> int:
    """Converts epochs to whole steps."""
    return round(epochs * self.steps_per_epoch)


def create_run_length(config: Any, num_examples: int) -> RunLength:
  """Computes the length of a run on `num_examples` images.

  Raises:
    InputError: a batch has more images than the data, the run has too many
      steps, or `steps_per_call` cannot be used.
  """
  if config.batch_size > num_examples:
    raise InputError(
      f'batch_size={config.batch_size} is more than the {num_examples} training'
      f' images: type --config.batch_size={num_examples} or less.'
    )
  steps_per_epoch = num_examples / config.batch_size
  num_steps = max(1, round(config.num_epochs * steps_per_epoch))
  if num_steps >= 2**31:  # Steps are int32 on the device.
    raise InputError(
      f'num_epochs={config.num_epochs} is {num_steps:,} steps; expected less'
      ' than 2**31.'
    )
  length = RunLength(
    batch_size=config.batch_size,
    num_steps=num_steps,
    steps_per_epoch=steps_per_epoch,
  )
  _check_call(config, length)
  return length


def _check_call(config: Any, length: RunLength) -> None:
  """Checks that calls of `steps_per_call` updates are possible."""
  count, every = config.steps_per_call, config.eval_every_epochs
  if count > 1 and config.data.cache is None:
    raise InputError(
      f'steps_per_call={count} needs images on the devices: type'
      ' --config.data.cache=device --config.data.augment_on=device'
    )
  intervals = (config.log_every_steps, config.save_every_steps)
  longest = max(1, min(*intervals, length.steps(every), length.num_steps))
  if count > longest:
    raise InputError(
      f'steps_per_call={count} is more than the {longest} steps between log'
      f' lines, evaluations or saves: type --config.steps_per_call={longest}'
    )


def check_batch(config: Any, num_devices: int) -> None:
  """Checks the sizes that divide a batch: devices, micro-batches, groups.

  Raises:
    InputError: a size does not divide the batch, or `data.repeats` exceeds it.
  """
  batch_size, parts = config.batch_size, config.accumulation_steps
  divisor = num_devices * parts
  if batch_size % divisor:
    below = batch_size // divisor * divisor
    sizes = ' or '.join(str(n) for n in (below, below + divisor) if n)
    raise InputError(
      f'batch_size={batch_size} is not divisible by {num_devices} devices times'
      f' accumulation_steps={parts}. Type a multiple of'
      f' {divisor}: --config.batch_size={sizes}'
    )
  images, what = batch_size, 'batch_size'
  if parts > 1:
    # If a group spanned several devices, XLA would gather the micro-batch, and
    # each device would compute all of it.
    images //= divisor
    what = f'batch_size / accumulation_steps / {num_devices} devices'
  group = config.model.bn_group_size
  if group is not None and images % group:
    raise InputError(
      f'model.bn_group_size={group} does not divide {what}, {images} images:'
      f' use a divisor of {images}, or fewer accumulation_steps.'
    )
  group = config.augment.mix_group_size
  if group is not None and batch_size % group:
    raise InputError(
      f'augment.mix_group_size={group} does not divide batch_size={batch_size}:'
      f' use a divisor of {batch_size}.'
    )
  if config.data.repeats > batch_size:
    raise InputError(
      f'data.repeats={config.data.repeats} is more than batch_size='
      f'{batch_size}: a batch would hold copies of one image only.'
    )
