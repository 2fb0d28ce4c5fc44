"""Optimizers: Optax chains by name, and the rules of weight decay."""

from collections.abc import Callable
import functools
import math
import re
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
  backbone_multiplier: float = 1.0,
  frozen_stages: int = 0,
) -> optax.GradientTransformation:
  """Returns SGD with momentum and L2 weight decay, as in Caffe and PyTorch.

    g = gradient + weight_decay * param      (where the rule says so)
    v = momentum * v + g
    param -= learning_rate * v               (g + momentum * v with Nesterov)

  All parameters but those of the head learn at `backbone_multiplier` times the
  rate; those of the stem and the first `frozen_stages` stages not at all.

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
  if not 0 <= backbone_multiplier <= 1:
    raise InputError(
      f'optimizer.backbone_multiplier={backbone_multiplier} is not in 0 .. 1.'
    )
  steps = [
    optax.add_decayed_weights(
      weight_decay, mask=lambda params: decay_mask(params, decay_rule)
    ),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  ]
  # Only where asked for: each is another entry in the state of a checkpoint.
  if backbone_multiplier != 1:
    steps.append(
      optax.masked(
        optax.scale(backbone_multiplier),
        functools.partial(_mask, lambda module: module != 'head'),
      )
    )
  if frozen_stages:
    steps.append(
      optax.masked(
        optax.set_to_zero(),
        functools.partial(_mask, lambda m: _is_frozen(m, frozen_stages)),
      )
    )
  return optax.chain(*steps)


def _mask(choose: Callable[[str], bool], params: Any) -> Any:
  """Returns a tree like `params`: True in the modules that are chosen."""
  return {
    module: jax.tree.map(lambda _, name=module: choose(name), leaves)
    for module, leaves in params.items()
  }


def _is_frozen(module: str, frozen_stages: int) -> bool:
  """Whether a module is of the stem or of the first stages."""
  stage = re.match(r'stage(\d+)_', module)
  return int(stage[1]) <= frozen_stages if stage else module.startswith('stem')
