"""Optimizers: chains of Optax transformations, chosen by name."""

from collections.abc import Callable
import math
import re
from typing import Any

import jax
import optax

from resnet.errors import InputError

# Each rule maps a parameter to whether weight decay applies to it.
DECAY_RULES: dict[str, Callable[[jax.Array], bool]] = {
  # Every parameter: He et al. 2016, fb.resnet.torch.
  'all': lambda _: True,
  # Kernels, but not scales and biases: Goyal et al. 2017.
  'kernels': lambda param: param.ndim > 1,
}


def decay_mask(params: Any, rule: str) -> Any:
  """Returns a tree like `params`: True where weight decay applies."""
  return jax.tree.map(DECAY_RULES[rule], params)


def create_optimizer(
  schedule: optax.Schedule, config: Any, *, frozen_stages: int = 0
) -> optax.GradientTransformation:
  """Creates the optimizer of `config.optimizer`.

  It clips the gradients, applies the update rule (see `_update_rule`), and
  scales the result: every parameter outside the head learns at
  `backbone_multiplier` times the learning rate, and the stem and the first
  `frozen_stages` stages do not learn at all.

  The gradient g of the parameter p is clipped by one of

    g *= min(1, clip_norm / |all gradients|)               (Pascanu et al. 2013)
    g *= min(1, clip_adaptive * max(|p|, 1e-3) / |g|)      (Brock et al. 2021)

  The second rule takes the norms of a kernel per output channel, and those of a
  bias or scale as a whole. As in the paper, it does not clip the head.

  `sam_rho` is not used here, because it changes how the gradients are computed:
  see `training.step`.

  Raises:
    InputError: the optimizer does not support the decay rule, or the gradients
      would be clipped twice.
  """
  if config.name in ('lars', 'lamb') and config.decay_rule != 'kernels':
    raise InputError(
      f'optimizer.decay_rule={config.decay_rule!r} is not for {config.name!r},'
      ' which never decays biases and scales: type'
      ' --config.optimizer.decay_rule=kernels'
    )
  if config.clip_norm is not None and config.clip_adaptive is not None:
    raise InputError(
      f'optimizer.clip_norm={config.clip_norm} and optimizer.clip_adaptive='
      f'{config.clip_adaptive} both clip the gradients: leave one out.'
    )
  steps = _update_rule(schedule, config)
  is_backbone = _mask(lambda module: module != 'head')
  # Add only the transformations in use: each has an entry in the saved state.
  if config.clip_norm is not None:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.clip_adaptive is not None:
    clip = optax.adaptive_grad_clip(config.clip_adaptive, eps=1e-3)
    steps.insert(0, optax.masked(clip, is_backbone))
  if config.backbone_multiplier != 1:
    slower = optax.scale(config.backbone_multiplier)
    steps.append(optax.masked(slower, is_backbone))
  if frozen_stages:
    is_frozen = _mask(lambda module: _stage(module) <= frozen_stages)
    steps.append(optax.masked(optax.set_to_zero(), is_frozen))
  return optax.chain(*steps)


def _update_rule(
  schedule: optax.Schedule, config: Any
) -> list[optax.GradientTransformation]:
  """Returns the transformations that turn gradients into updates.

  With the gradient g and the parameter p:

    'sgd', with L2 weight decay as in Caffe and PyTorch:
      d = g + weight_decay * p                 (if the decay rule includes p)
      v = momentum * v + d
      p -= learning_rate * v                   (d + momentum * v with Nesterov)
    'sgdw' (Loshchilov and Hutter 2019, Algorithm 1), with decoupled decay:
      v = momentum * v + g
      p -= learning_rate * (v + weight_decay * p)
                                               (g + momentum * v with Nesterov)
    'adamw' (same paper, Algorithm 2), with m and v as in Adam, and momentum as
      b1:
      p -= learning_rate * (m / (sqrt(v) + eps) + weight_decay * p)
    'lars' (You et al. 2017, Algorithm 1), with d as in 'sgd':
      v = momentum * v + learning_rate * trust_coefficient * |p| / |d| * d
      p -= v
    'lamb' (You et al. 2020, Algorithm 2), with m and v as in 'adamw':
      d = m / (sqrt(v) + eps) + weight_decay * p
      p -= learning_rate * |p| / |d| * d

  Decoupled decay is multiplied by the learning rate, as in PyTorch's AdamW and
  timm's SGDW; in the paper it is multiplied by the schedule alone.

  'lars' and 'lamb' apply neither decay nor a ratio of norms to biases and
  scales, as in the papers' code. If |p| or |d| of a kernel is zero, the factor
  1 replaces its coefficient and ratio, as in `optax.lars` and MLPerf's LARS.
  """
  decay = optax.add_decayed_weights(
    config.weight_decay,
    mask=lambda params: decay_mask(params, config.decay_rule),
  )
  rate = optax.scale_by_learning_rate(schedule)
  trace = optax.trace(decay=config.momentum, nesterov=config.nesterov)
  adam = optax.scale_by_adam(b1=config.momentum, b2=config.b2, eps=config.eps)
  return {
    'sgd': [decay, trace, rate],
    'sgdw': [trace, decay, rate],
    'adamw': [adam, decay, rate],
    'lars': [decay, _adapt_kernels(config.trust_coefficient), rate, trace],
    'lamb': [adam, decay, _adapt_kernels(1.0), rate],
  }[config.name]


def _adapt_kernels(coefficient: float) -> optax.GradientTransformation:
  """Scales the update u of each kernel p by coefficient * |p| / |u|."""
  return optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient),
    lambda params: decay_mask(params, 'kernels'),
  )


def _mask(choose: Callable[[str], bool]) -> Callable[[Any], Any]:
  """Returns a mask of parameters: True in the modules that `choose` accepts."""
  return lambda params: {
    module: jax.tree.map(lambda _, name=module: choose(name), leaves)
    for module, leaves in params.items()
  }


def _stage(module: str) -> float:
  """Returns a module's stage: 0 for the stem, infinity after the last stage."""
  if match := re.match(r'stage(\d+)_', module):
    return int(match[1])
  return 0 if module.startswith('stem') else math.inf
