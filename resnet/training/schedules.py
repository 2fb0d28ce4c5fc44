"""Learning rate schedules: functions of the number of finished updates."""

from typing import Any

import jax.numpy as jnp
import optax

from resnet.errors import InputError
from resnet.training.run_length import RunLength

# Fractions of the peak, from torch.optim.lr_scheduler.OneCycleLR.
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4


def create_schedule(length: RunLength, config: Any) -> optax.Schedule:
  """Creates the schedule of `config.schedule`: step -> learning rate.

  Step 0 is the first update. Let peak, first and last be `learning_rate`,
  `warmup_learning_rate` and `final_learning_rate`, each multiplied by
  batch_size / base_batch_size (linear scaling: Goyal et al. 2017), w the steps
  of the warm-up and c those of the cool-down. During the warm-up the rate is

    peak * (step + 1) / w, or, if `warmup_learning_rate` is given,
    first + (peak - first) * step / w  (PyTorch's LinearLR, timm's --warmup-lr)

  Then, with t = min(1, (step - w) / (num_steps - w - c)):

    'cosine': last + (peak - last) * (1 + cos(pi * t)) / 2
      (Loshchilov and Hutter 2017, without restarts)
    'polynomial': last + (peak - last) * (1 - t) ** decay_power
      (You et al. 2017, with power 2)
    'step': peak * decay_factor ** (number of `decay_epochs` passed)
      (He et al. 2016, section 3.4)
    'wsd': peak, and during the last c updates
      last + (peak - last) * ((num_steps - step) / c) ** decay_power
      (warm-up, stable, decay: Hu et al. 2024)

  'cosine' and 'polynomial' stay at `last` during the cool-down, as in timm.

  'one_cycle' (Smith and Topin 2018, PyTorch's OneCycleLR) has its own warm-up:
  half a cosine from peak / 25 to peak during `warmup_epochs`, and another one
  down to peak / 250,000 over the rest of the run.

  Raises:
    InputError: the values do not fit each other or the run.
  """
  scale = length.batch_size / config.base_batch_size
  peak = scale * config.learning_rate
  warmup_steps = length.steps(config.warmup_epochs)
  if warmup_steps >= length.num_steps:
    raise InputError(
      f'schedule.warmup_epochs={config.warmup_epochs} is {warmup_steps} steps;'
      f' expected less than the {length.num_steps} steps of the run. Type'
      ' --config.schedule.warmup_epochs=0, or train for more epochs.'
    )
  if config.name == 'one_cycle':
    schedule = _one_cycle(peak, warmup_steps, length.num_steps)
  else:
    main = _step if config.name == 'step' else _falling
    schedule = main(config, length, scale, warmup_steps)
    if warmup_steps:
      warmup = _warmup(config, scale, warmup_steps)
      schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
  # Optax divides the count by floats, which strict promotion forbids for int32.
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
      f'schedule.decay_epochs={tuple(config.decay_epochs)} must rise, and start'
      f' after the {config.warmup_epochs} epochs of warm-up.'
    )
  if max(boundaries, default=0) >= 2**31:  # Steps are int32 on the device.
    raise InputError(
      f'schedule.decay_epochs={tuple(config.decay_epochs)}: the last is step'
      f' {boundaries[-1]:.3g}; expected less than 2**31.'
    )
  factor: float = config.decay_factor
  return optax.piecewise_constant_schedule(
    scale * config.learning_rate, dict.fromkeys(boundaries, factor)
  )


def _falling(
  config: Any, length: RunLength, scale: float, warmup_steps: int
) -> optax.Schedule:
  """Returns 'cosine', 'polynomial' or 'wsd'; step 0 is the end of warm-up."""
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
      ' --config.schedule.final_learning_rate as well.'
    )
  peak = scale * config.learning_rate
  last = scale * config.final_learning_rate
  start = main_steps - cooldown_steps
  if config.name == 'cosine':
    return optax.cosine_decay_schedule(peak, start, alpha=last / peak)
  steps, begin = (cooldown_steps, start) if is_wsd else (start, 0)
  return optax.polynomial_schedule(peak, last, config.decay_power, steps, begin)


def _one_cycle(
  peak: float, warmup_steps: int, num_steps: int
) -> optax.Schedule:
  """Returns half a cosine up to the peak, in `warmup_steps`, and one down."""
  if not 1 < warmup_steps < num_steps - 1:
    raise InputError(
      f"schedule.name='one_cycle' rises for schedule.warmup_epochs, which is"
      f' {warmup_steps} steps; expected 2 to {num_steps - 2}. A third of the'
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
