"""Learning rate as a function of `step`, the count of finished updates."""

from typing import Any

import jax.numpy as jnp
import optax

from resnet.errors import InputError
from resnet.training.run_length import RunLength

# torch.optim.lr_scheduler.OneCycleLR's.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4


def create_schedule(length: RunLength, config: Any) -> optax.Schedule:
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

  Args:
    length: of the run.
    config: the section `schedule`; fields that a schedule does not use are
      ignored.

  Raises:
    InputError: the numbers do not fit each other or the run.
  """
  scale = length.batch_size / config.base_batch_size
  peak = scale * config.learning_rate
  warmup_steps = length.steps(config.warmup_epochs)
  if warmup_steps >= length.num_steps:
    raise InputError(
      f'schedule.warmup_epochs={config.warmup_epochs} is {warmup_steps} steps;'
      f' expected less than the {length.num_steps} steps of the run.'
    )
  if config.name == 'one_cycle':
    schedule = _one_cycle(peak, warmup_steps, length.num_steps)
  else:
    main = _step if config.name == 'step' else _falling
    schedule = main(config, length, scale, warmup_steps)
    if warmup_steps:
      warmup = _warmup(config, scale, warmup_steps)
      schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
  # Optax divides the count by floats: make it one, as strict promotion asks.
  return lambda step: schedule(jnp.asarray(step, jnp.float32))


def _warmup(config: Any, scale: float, warmup_steps: int) -> optax.Schedule:
  peak, first = scale * config.learning_rate, config.warmup_learning_rate
  if first is None:
    return optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
  if first > config.learning_rate:
    raise InputError(
      f'schedule.warmup_learning_rate={first} is more than'
      f' schedule.learning_rate={config.learning_rate}.'
    )
  return optax.linear_schedule(scale * first, peak, warmup_steps)


def _step(
  config: Any, length: RunLength, scale: float, warmup_steps: int
) -> optax.Schedule:
  boundaries = [length.steps(e) - warmup_steps for e in config.decay_epochs]
  if sorted(set(boundaries)) != boundaries or min(boundaries, default=1) <= 0:
    raise InputError(
      f'schedule.decay_epochs={tuple(config.decay_epochs)} must rise, and begin'
      f' after the {config.warmup_epochs} epochs of warm-up.'
    )
  if max(boundaries, default=0) >= 2**31:  # Steps are int32 on the device.
    raise InputError(
      f'schedule.decay_epochs={tuple(config.decay_epochs)}: the last is step'
      f' {boundaries[-1]:.3g}, and there are less than 2**31.'
    )
  factor: float = config.decay_factor
  return optax.piecewise_constant_schedule(
    scale * config.learning_rate, dict.fromkeys(boundaries, factor)
  )


def _falling(
  config: Any, length: RunLength, scale: float, warmup_steps: int
) -> optax.Schedule:
  """Returns 'cosine', 'polynomial' or 'wsd', counted from the warm-up's end."""
  main_steps = length.num_steps - warmup_steps
  cooldown_steps = length.steps(config.cooldown_epochs)
  is_wsd = config.name == 'wsd'
  least, most = (1, main_steps) if is_wsd else (0, main_steps - 1)
  if not least <= cooldown_steps <= most:
    raise InputError(
      f'schedule.cooldown_epochs={config.cooldown_epochs} is {cooldown_steps}'
      f' steps; expected {least} to {most}, of {main_steps} steps after the'
      ' warm-up.'
    )
  if config.final_learning_rate >= config.learning_rate:
    raise InputError(
      f'schedule.final_learning_rate={config.final_learning_rate} is not below'
      f' schedule.learning_rate={config.learning_rate}.'
    )
  if cooldown_steps and not is_wsd and not config.final_learning_rate:
    raise InputError(
      'schedule.cooldown_epochs would have a learning rate of zero: give'
      ' --config.schedule.final_learning_rate'
    )
  peak = scale * config.learning_rate
  last = scale * config.final_learning_rate
  begin = main_steps - cooldown_steps
  if config.name == 'cosine':
    return optax.cosine_decay_schedule(peak, begin, alpha=last / peak)
  if config.name == 'polynomial':
    return optax.polynomial_schedule(peak, last, config.decay_power, begin)
  return optax.polynomial_schedule(
    peak, last, config.decay_power, cooldown_steps, transition_begin=begin
  )


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
