"""Learning rate as a function of `step`, the count of finished updates."""

from collections.abc import Sequence
import dataclasses
import math

import jax.numpy as jnp
import optax

from resnet.errors import InputError

SCHEDULES = ('step', 'cosine', 'polynomial', 'one_cycle', 'wsd')
# Those that fall to a last rate, and may have a cool-down.
FALLING = ('cosine', 'polynomial', 'wsd')

# torch.optim.lr_scheduler.OneCycleLR's.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4


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


def create_schedule(
  length: RunLength,
  *,
  name: str,
  learning_rate: float,
  base_batch_size: int,
  warmup_epochs: float,
  decay_epochs: Sequence[float],
  decay_factor: float,
  decay_power: float,
  cooldown_epochs: float,
  warmup_learning_rate: float | None = None,
  final_learning_rate: float = 0.0,
) -> optax.Schedule:
  """Returns the learning rate of update `step` (0 is the first).

  All rates are times batch_size / base_batch_size (Goyal et al. 2017, the
  linear scaling rule): `peak`, `first` and `last` are the three that are given.
  The first w updates have peak * (step + 1) / w; with a `first` they have

    first + (peak - first) * step / w  (PyTorch's LinearLR, timm's --warmup-lr)

  Then, with n = num_steps - w - c, where c is the steps of the cool-down, and
  t = min(1, (step - w) / n):

    'cosine': last + (peak - last) * (1 + cos(pi * t)) / 2
      (Loshchilov and Hutter 2017, without restarts)
    'polynomial': last + (peak - last) * (1 - t) ** decay_power
      (You et al. 2017, with power 2)
    'step': peak * decay_factor ** (number of `decay_epochs` that are over)
      (He et al. 2016, section 3.4)
    'wsd': peak, but over the last c updates
      last + (peak - last) * ((num_steps - step) / c) ** decay_power
      (warm-up, stable, decay: Hu et al. 2024)

  so that the first two stay at `last` for the cool-down, as timm's do.

  'one_cycle' (Smith and Topin 2018, as PyTorch's OneCycleLR) has a warm-up of
  its own: half a cosine from peak / 25 to peak over `warmup_epochs`, and
  another to peak / 250,000 at the end.

  Fields that a schedule does not use are ignored.

  Raises:
    InputError: an unknown name, or numbers that make no schedule.
  """
  if name not in SCHEDULES:
    raise InputError(
      f'schedule.name={name!r} is none of {", ".join(SCHEDULES)}.'
    )
  for field, value in (
    ('learning_rate', learning_rate),
    ('base_batch_size', base_batch_size),
    ('decay_factor', decay_factor),
    ('decay_power', decay_power),
  ):
    if not 0 < value < math.inf:
      raise InputError(f'schedule.{field}={value} must be positive.')
  if not 0 <= warmup_epochs < math.inf or not all(
    isinstance(epoch, int | float) and math.isfinite(epoch)
    for epoch in decay_epochs
  ):
    raise InputError(
      f'schedule.warmup_epochs={warmup_epochs} and schedule.decay_epochs='
      f'{tuple(decay_epochs)} must be numbers, not negative.'
    )
  scale = length.batch_size / base_batch_size
  peak, last = scale * learning_rate, scale * final_learning_rate
  warmup_steps = length.steps(warmup_epochs)
  if not 0 <= warmup_steps < length.num_steps:
    raise InputError(
      f'schedule.warmup_epochs={warmup_epochs} is {warmup_steps} steps;'
      f' expected 0 to less than the {length.num_steps} steps of the run.'
    )
  main_steps = length.num_steps - warmup_steps
  cooldown_steps = 0
  if name in FALLING:
    cooldown_steps = _cooldown_steps(name, cooldown_epochs, length, main_steps)
    _check_final(
      final_learning_rate, learning_rate, name, has_cooldown=cooldown_steps > 0
    )
  has_warmup = warmup_steps > 0 and name != 'one_cycle'
  if has_warmup and not 0 <= (warmup_learning_rate or 0) <= learning_rate:
    raise InputError(
      f'schedule.warmup_learning_rate={warmup_learning_rate} is not in 0 ..'
      f' {learning_rate}, which is schedule.learning_rate.'
    )
  begin = main_steps - cooldown_steps
  if name == 'one_cycle':
    main = _one_cycle(peak, warmup_steps, length.num_steps)
  elif name == 'cosine':
    main = optax.cosine_decay_schedule(peak, begin, alpha=last / peak)
  elif name == 'polynomial':
    main = optax.polynomial_schedule(peak, last, decay_power, begin)
  elif name == 'wsd':
    main = optax.polynomial_schedule(
      peak, last, decay_power, cooldown_steps, transition_begin=begin
    )
  else:
    boundaries = [length.steps(e) - warmup_steps for e in decay_epochs]
    if sorted(set(boundaries)) != boundaries or min(boundaries, default=1) <= 0:
      raise InputError(
        f'schedule.decay_epochs={tuple(decay_epochs)} must rise, and begin'
        f' after the {warmup_epochs} epochs of warm-up.'
      )
    if max(boundaries, default=0) >= 2**31:  # Steps are int32 on the device.
      raise InputError(
        f'schedule.decay_epochs={tuple(decay_epochs)}: the last is step'
        f' {boundaries[-1]:.3g}, and there are less than 2**31.'
      )
    main = optax.piecewise_constant_schedule(
      peak, dict.fromkeys(boundaries, decay_factor)
    )
  if has_warmup:
    if warmup_learning_rate is None:
      ends = peak / warmup_steps, peak, warmup_steps - 1
    else:
      ends = scale * warmup_learning_rate, peak, warmup_steps
    warmup = optax.linear_schedule(*ends)
    main = optax.join_schedules([warmup, main], [warmup_steps])
  # Optax divides the count by floats: make it one, as strict promotion asks.
  return lambda step: main(jnp.asarray(step, jnp.float32))


def _check_final(
  final: float, peak: float, name: str, *, has_cooldown: bool
) -> None:
  """Checks the last rate, before it is scaled."""
  if not 0 <= final < peak:
    raise InputError(
      f'schedule.final_learning_rate={final} is not in [0, {peak}), the end of'
      ' which is schedule.learning_rate.'
    )
  if has_cooldown and name != 'wsd' and not final:
    raise InputError(
      'schedule.cooldown_epochs would have a learning rate of zero: give'
      ' --config.schedule.final_learning_rate'
    )


def _cooldown_steps(
  name: str, cooldown_epochs: float, length: RunLength, main_steps: int
) -> int:
  """Returns the steps of the cool-down; 'wsd' must have one."""
  if not 0 <= cooldown_epochs < math.inf:
    raise InputError(
      f'schedule.cooldown_epochs={cooldown_epochs} is not a number from 0 up.'
    )
  steps = length.steps(cooldown_epochs)
  least, most = (1, main_steps) if name == 'wsd' else (0, main_steps - 1)
  if not least <= steps <= most:
    raise InputError(
      f'schedule.cooldown_epochs={cooldown_epochs} is {steps} steps; expected'
      f' {least} to {most}, of {main_steps} steps after the warm-up.'
    )
  return steps


def _one_cycle(
  peak: float, warmup_steps: int, num_steps: int
) -> optax.Schedule:
  """Half a cosine up, so that the peak is at `warmup_steps`, and one down."""
  if not 1 < warmup_steps < num_steps - 1:
    raise InputError(
      f"schedule.name='one_cycle' rises for schedule.warmup_epochs, which is"
      f' {warmup_steps} steps: expected 2 to {num_steps - 2}; a third of the'
      ' epochs is usual.'
    )

  top = warmup_steps - 1
  rise = optax.cosine_decay_schedule(
    peak * _ONE_CYCLE_START, top, alpha=1 / _ONE_CYCLE_START
  )
  fall = optax.cosine_decay_schedule(
    peak, num_steps - 1 - top, alpha=_ONE_CYCLE_END
  )
  return optax.join_schedules([rise, fall], [top])
