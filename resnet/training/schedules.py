"""Learning rate as a function of `step`, the count of finished updates."""

from collections.abc import Sequence
import dataclasses
import math

import jax.numpy as jnp
import optax

from resnet.errors import InputError

SCHEDULES = ('step', 'cosine', 'polynomial')


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
) -> optax.Schedule:
  """Returns the learning rate of update `step` (0 is the first).

  peak = learning_rate * batch_size / base_batch_size (Goyal et al. 2017, the
  linear scaling rule). The first w updates have peak * (step + 1) / w. Then:

    'cosine': peak * (1 + cos(pi * (step - w) / (num_steps - w))) / 2
      (Loshchilov and Hutter 2017, without restarts)
    'step': peak * decay_factor ** (number of `decay_epochs` that are over)
      (He et al. 2016, section 3.4)
    'polynomial': peak * (1 - (step - w) / (num_steps - w)) ** decay_power
      (You et al. 2017, with power 2)

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
  peak = learning_rate * length.batch_size / base_batch_size
  warmup_steps = length.steps(warmup_epochs)
  if not 0 <= warmup_steps < length.num_steps:
    raise InputError(
      f'schedule.warmup_epochs={warmup_epochs} is {warmup_steps} steps;'
      f' expected 0 to less than the {length.num_steps} steps of the run.'
    )
  main_steps = length.num_steps - warmup_steps
  if name != 'step' and decay_epochs:
    raise InputError(
      f'schedule.decay_epochs={tuple(decay_epochs)} means nothing to {name!r}:'
      " set it to (), or take schedule.name='step'."
    )
  if name == 'cosine':
    main = optax.cosine_decay_schedule(peak, main_steps)
  elif name == 'polynomial':
    main = optax.polynomial_schedule(peak, 0.0, decay_power, main_steps)
  else:
    boundaries = [length.steps(e) - warmup_steps for e in decay_epochs]
    if sorted(set(boundaries)) != boundaries or min(boundaries, default=1) <= 0:
      raise InputError(
        f'schedule.decay_epochs={tuple(decay_epochs)} must rise, and begin'
        f' after the {warmup_epochs} epochs of warm-up.'
      )
    main = optax.piecewise_constant_schedule(
      peak, dict.fromkeys(boundaries, decay_factor)
    )
  if warmup_steps:
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    main = optax.join_schedules([warmup, main], [warmup_steps])
  # Optax divides the count by floats: make it one, as strict promotion asks.
  return lambda step: main(jnp.asarray(step, jnp.float32))
