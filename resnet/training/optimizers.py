"""Optimizers: Optax chains by name, and the rules of weight decay."""

from collections.abc import Callable
import math
from typing import Any

import jax
import optax

from resnet.errors import InputError

# Which parameters decay, by name of the rule.
DECAY_RULES: dict[str, Callable[[jax.Array], bool]] = {
  # Every parameter: He et al. 2016, fb.resnet.torch.
  'all': lambda _: True,
  # Kernels of convolutions and head; not scales, not biases: Goyal et al. 2017.
  'kernels': lambda param: param.ndim > 1,
}


def decay_mask(params: Any, rule: str) -> Any:
  """Returns a tree like `params`: True where weight decay applies."""
  return jax.tree.map(DECAY_RULES[rule], params)


def create_optimizer(
  schedule: optax.Schedule,
  *,
  name: str,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  decay_rule: str,
) -> optax.GradientTransformation:
  """Returns SGD with momentum and L2 weight decay, as in Caffe and PyTorch.

    g = gradient + weight_decay * param      (where the rule says so)
    v = momentum * v + g
    param -= learning_rate * v               (g + momentum * v with Nesterov)

  Raises:
    InputError: an unknown name or rule, or a number out of its range.
  """
  if name != 'sgd':
    raise InputError(f"optimizer.name={name!r} is none of 'sgd'.")
  if decay_rule not in DECAY_RULES:
    raise InputError(
      f'optimizer.decay_rule={decay_rule!r} is none of'
      f' {", ".join(DECAY_RULES)}.'
    )
  if not 0 <= momentum < 1:
    raise InputError(f'optimizer.momentum={momentum} is not in [0, 1).')
  if not 0 <= weight_decay < math.inf:
    raise InputError(
      f'optimizer.weight_decay={weight_decay} is not a number from 0 up.'
    )
  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, mask=lambda params: decay_mask(params, decay_rule)
    ),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  )
