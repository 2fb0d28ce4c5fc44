"""The valid values of each config field, and fields that have no effect."""

from collections.abc import Mapping, Set
import dataclasses
from typing import Any

from resnet.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """The valid values of a field; by default, all except None and ''.

  Attributes:
    choices: the valid texts.
    interval: range of a number; '[0, 1)' includes 0 and excludes 1.
    example: a valid tuple, if the value is a tuple of numbers in `interval`.
    any_length: the tuple may be shorter or longer than the example.
    rising: the numbers of the tuple must be in non-decreasing order.
    also: further valid values, such as None.
  """

  choices: tuple[str, ...] = ()
  interval: str = ''
  example: tuple[float, ...] = ()
  any_length: bool = False
  rising: bool = False
  also: tuple[Any, ...] = ()

  def describe(self, name: str) -> str:
    """Describes the valid values of the field `name` for an error message."""
    also = ''.join(f' or {value}' for value in self.also)
    if self.choices:
      return f'one of {", ".join(self.choices)}{also}'
    if not self.interval:
      return f'a name{also}'
    if not self.example:
      return f'in {self.interval}{also}'
    count = 'a tuple of ' if self.any_length else f'{len(self.example)} '
    order = ', in rising order' if self.rising else ''
    return (
      f'{count}numbers in {self.interval}{order}: type'
      f" --config.{name}='{self.example}'"
    )

  def accepts(self, value: Any) -> bool:
    """Returns whether the value is valid."""
    if value in self.also:
      return True
    if self.choices:
      return value in self.choices
    if not self.interval:
      return value not in (None, '')
    if not self.example:
      return _contains(self.interval, value)
    return (
      isinstance(value, list | tuple)
      and (self.any_length or len(value) == len(self.example))
      and all(_contains(self.interval, number) for number in value)
      and (not self.rising or sorted(value) == list(value))
    )


def _contains(interval: str, value: Any) -> bool:
  if not isinstance(value, int | float) or isinstance(value, bool):
    return False
  low, high = map(float, interval[1:-1].split(','))
  return (low < value or (low == value and interval[0] == '[')) and (
    value < high or (value == high and interval[-1] == ']')
  )


NONE = (None,)
_OPTIONAL = Field(also=NONE)  # Checked by the code that uses the field.
# On the device, steps are int32 and other numbers float32.
_COUNT = Field(interval='[1, 2147483647]')
_OPTIONAL_COUNT = dataclasses.replace(_COUNT, also=NONE)
_DURATION = Field(interval='[1e-6, 2147483647]')
_POSITIVE = Field(interval='(0, inf)')
_NOT_NEGATIVE = Field(interval='[0, inf)')
_SHARE = Field(interval='[0, 1]')
_BELOW_ONE = Field(interval='[0, 1)')
_FINITE = Field(interval='[0, 3.4e38]')
_LIMIT = Field(interval='[1e-30, 3.4e38]', also=NONE)
# In float32, Beta(alpha, alpha) is 0, infinite or NaN for other values.
_ALPHA = Field(interval='[1e-30, 1e30]', also=(0,))
_AREA = Field(interval='(0, 1]', example=(0.08, 1.0), rising=True)
_ASPECT = Field(interval='(0, inf)', example=(0.75, 1.33), rising=True)

# By name, in the order of configs/default.py, which explains each field. Fields
# that are missing here are checked by the code that uses them.
FIELDS: Mapping[str, Field] = {
  'seed': Field(interval='[0, 4294967295]'),
  'init_from': _OPTIONAL,
  'batch_size': _COUNT,
  'num_epochs': _DURATION,
  'accumulation_steps': _COUNT,
  'log_every_steps': _COUNT,
  'eval_every_epochs': _DURATION,
  'save_every_steps': _COUNT,
  'wandb': _OPTIONAL,
  'keep_checkpoints': _COUNT,
  'max_bad_steps': _COUNT,
  'watchdog_seconds': Field(interval='[1e-6, 2147483647]', also=NONE),
  'preemption_grace_seconds': _DURATION,
  'ema_decay': Field(interval='(0, 1)', also=NONE),
  'ema_every_steps': _COUNT,
  'steps_per_call': _COUNT,
  'model.num_classes': Field(interval='[1, 1000000]', also=NONE),
  'model.dtype': Field(choices=('float32', 'bfloat16')),
  'model.zero_init_last_scale': _OPTIONAL,
  'model.shortcut': _OPTIONAL,
  'model.bn_group_size': _OPTIONAL_COUNT,
  'model.bn_momentum': Field(interval='[0, 1)', also=NONE),
  'model.frozen_stages': _OPTIONAL,
  'model.frozen_bn': _OPTIONAL,
  'model.drop_path': _OPTIONAL,
  'model.dropout': _OPTIONAL,
  'model.conv_backend': _OPTIONAL,
  'model.remat': _OPTIONAL,
  'data.data_dir': _OPTIONAL,
  'data.image_size': Field(interval='[1, 4096]'),
  'data.eval_size': Field(interval='[1, 4096]', also=NONE),
  'data.crop': Field(choices=('random_resized', 'pad', 'none')),
  'data.crop_area': _AREA,
  'data.crop_aspect': _ASPECT,
  'data.crop_padding': Field(interval='[0, 4096]'),
  'data.repeats': _COUNT,
  'data.interpolation': Field(choices=('bilinear', 'bicubic')),
  'data.augment_on': Field(choices=('host', 'device')),
  'data.cache': Field(choices=('device',), also=NONE),
  'data.mean': Field(
    interval='(-inf, inf)', example=(127.5,) * 3, any_length=True, also=NONE
  ),
  'data.std': Field(
    interval='(0, inf)', example=(127.5,) * 3, any_length=True, also=NONE
  ),
  'data.num_workers': _NOT_NEGATIVE,
  'data.num_threads': _COUNT,
  'data.prefetch_batches': _COUNT,
  'data.on_bad_image': Field(choices=('error', 'skip')),
  'data.max_bad_images': _NOT_NEGATIVE,
  'data.max_worker_restarts': _NOT_NEGATIVE,
  'augment.num_layers': Field(interval='[1, 15]'),
  'augment.magnitude': Field(interval='[0, 30]'),
  'augment.magnitude_std': _NOT_NEGATIVE,
  'augment.operation_probability': _SHARE,
  'augment.interpolation': Field(choices=('nearest', 'bilinear')),
  'augment.jitter': Field(interval='[0, 1]', example=(0.4, 0.4, 0.4)),
  'augment.lighting': _NOT_NEGATIVE,
  'augment.erase_probability': _SHARE,
  'augment.erase_area': dataclasses.replace(_AREA, example=(0.02, 0.33)),
  'augment.erase_aspect': dataclasses.replace(_ASPECT, example=(0.3, 3.3)),
  'augment.erase_fill': Field(choices=('noise', 'mean')),
  'augment.mixup_alpha': _ALPHA,
  'augment.cutmix_alpha': _ALPHA,
  'augment.mix_probability': _SHARE,
  'augment.cutmix_share': _SHARE,
  'augment.mix_group_size': _OPTIONAL_COUNT,
  'sharding.data': _OPTIONAL_COUNT,
  'sharding.fsdp': _COUNT,
  'optimizer.name': Field(choices=('sgd', 'sgdw', 'adamw', 'lars', 'lamb')),
  'optimizer.momentum': _BELOW_ONE,
  'optimizer.trust_coefficient': _FINITE,
  'optimizer.b2': _BELOW_ONE,
  'optimizer.eps': _FINITE,
  'optimizer.weight_decay': _FINITE,
  'optimizer.decay_rule': Field(choices=('all', 'kernels')),
  'optimizer.clip_norm': _LIMIT,
  'optimizer.clip_adaptive': _LIMIT,
  'optimizer.sam_rho': _LIMIT,
  'optimizer.backbone_multiplier': _SHARE,
  'schedule.name': Field(
    choices=('step', 'cosine', 'polynomial', 'one_cycle', 'wsd')
  ),
  'schedule.learning_rate': _POSITIVE,
  'schedule.base_batch_size': _COUNT,
  'schedule.warmup_epochs': _NOT_NEGATIVE,
  'schedule.warmup_learning_rate': Field(interval='[0, inf)', also=NONE),
  'schedule.decay_epochs': Field(
    interval='[0, inf)', example=(30.0, 60.0), any_length=True, rising=True
  ),
  'schedule.decay_factor': _POSITIVE,
  'schedule.decay_power': _POSITIVE,
  'schedule.final_learning_rate': _NOT_NEGATIVE,
  'schedule.cooldown_epochs': _NOT_NEGATIVE,
  'loss.name': Field(choices=('cross_entropy', 'binary_cross_entropy')),
  'loss.label_smoothing': _BELOW_ONE,
  'loss.target_threshold': Field(interval='[0, 1)', also=NONE),
  'loss.reduction': Field(choices=('mean', 'sum')),
}

# Fields for reading data, sharding the state and dispatching updates. A run can
# be resumed with other values of them.
FREE_FIELDS: Set[str] = {
  'steps_per_call',
  'data.data_dir',
  'data.cache',
  'data.num_workers',
  'data.num_threads',
  'data.prefetch_batches',
  'data.max_bad_images',
  'data.max_worker_restarts',
  'sharding.data',
  'sharding.fsdp',
}

# Fields for logging, checkpoints and tolerance of errors; they do not affect
# the weights. A run can be resumed with other values and --allow_config_change.
SAFE_FIELDS: Set[str] = {
  'log_every_steps',
  'eval_every_epochs',
  'save_every_steps',
  'wandb',
  'keep_checkpoints',
  'max_bad_steps',
  'watchdog_seconds',
  'preemption_grace_seconds',
}

_NO_NESTEROV = ('adamw', 'lamb')
_NOT_STEP = ('cosine', 'polynomial', 'one_cycle', 'wsd')
_NOT_FALLING = ('step', 'one_cycle')
# (field, its default, another field, values of the other field for which this
# field has no effect).
_WITHOUT_EFFECT = (
  ('ema_every_steps', 1, 'ema_decay', NONE),
  ('optimizer.nesterov', False, 'optimizer.name', _NO_NESTEROV),
  ('schedule.decay_epochs', [], 'schedule.name', _NOT_STEP),
  ('schedule.final_learning_rate', 0.0, 'schedule.name', _NOT_FALLING),
  ('schedule.cooldown_epochs', 0.0, 'schedule.name', _NOT_FALLING),
  ('schedule.warmup_learning_rate', None, 'schedule.warmup_epochs', (0,)),
  ('schedule.warmup_learning_rate', None, 'schedule.name', ('one_cycle',)),
  ('loss.target_threshold', None, 'loss.name', ('cross_entropy',)),
  ('loss.reduction', 'mean', 'loss.name', ('cross_entropy',)),
)


def check(config: Mapping[str, Any]) -> None:
  """Checks the value of each field, by dotted name.

  Raises:
    InputError: a value is out of range, not one of the choices, or None for a
      field that must have a value.
  """
  for name, value in config.items():
    field = FIELDS.get(name)
    if field and not field.accepts(value):
      raise InputError(f'{name}={value!r} is not {field.describe(name)}.')
    if field is None and value is None:
      raise InputError(f'{name}=None: this field must have a value.')


def notices(config: Mapping[str, Any]) -> list[str]:
  """Returns a line for each field that is set but has no effect."""
  return [
    f'{field}={config[field]!r} has no effect with {other}={config[other]!r}.'
    for field, usual, other, values in _WITHOUT_EFFECT
    if config[field] != usual and config[other] in values
  ]
