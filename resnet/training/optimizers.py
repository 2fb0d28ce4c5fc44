"""Optimizers: Optax chains by name, and the rules of weight decay."""

from collections.abc import Callable
import functools
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
  schedule: optax.Schedule, config: Any, *, frozen_stages: int = 0
) -> optax.GradientTransformation:
  """Returns the optimizer that the section `optimizer` of a config names.

  With the gradient g and the parameter p:

    'sgd', with L2 weight decay as in Caffe and PyTorch:
      d = g + weight_decay * p                 (where the rule says so)
      v = momentum * v + d
      p -= learning_rate * v                   (d + momentum * v with Nesterov)
    'sgdw' (Loshchilov and Hutter 2019, Algorithm 1), the decay decoupled:
      v = momentum * v + g
      p -= learning_rate * (v + weight_decay * p)
                                               (g + momentum * v with Nesterov)
    'adamw' (the same, Algorithm 2), with m and v as in Adam, b1 being the
      momentum:
      p -= learning_rate * (m / (sqrt(v) + eps) + weight_decay * p)
    'lars' (You et al. 2017, Algorithm 1), with d as in 'sgd':
      v = momentum * v + learning_rate * trust_coefficient * |p| / |d| * d
      p -= v
    'lamb' (You et al. 2020, Algorithm 2), with m and v as in 'adamw':
      d = m / (sqrt(v) + eps) + weight_decay * p
      p -= learning_rate * |p| / |d| * d

  Decoupled decay is times the learning rate, as in PyTorch's AdamW and timm's
  SGDW; in the paper it is times the schedule alone.

  The last two adapt and decay kernels only: biases, and scales of batch norm,
  are neither decayed nor scaled by a ratio of norms, as in the papers' code. A
  kernel whose norm, or whose direction's norm, is zero has the factor 1 in the
  place of its coefficient and ratio, as in `optax.lars` and MLPerf's LARS.

  Before all that g is clipped, by one of

    g *= min(1, clip_norm / |all gradients|)               (Pascanu et al. 2013)
    g *= min(1, clip_adaptive * max(|p|, 1e-3) / |g|)      (Brock et al. 2021)

  the second for each output channel of a kernel, for each bias and scale as a
  whole, and not for the head, as in the paper.

  All parameters but those of the head learn at `backbone_multiplier` times the
  rate; those of the stem and the first `frozen_stages` stages not at all.
  `sam_rho` changes the gradients themselves: see `training.step`.

  Raises:
    InputError: the rule of decay is not for this optimizer, or gradients would
      be clipped twice.
  """
  if config.name in ('lars', 'lamb') and config.decay_rule != 'kernels':
    raise InputError(
      f'optimizer.decay_rule={config.decay_rule!r} is not for {config.name!r},'
      ' which leaves out biases and scales:'
      ' --config.optimizer.decay_rule=kernels'
    )
  if config.clip_norm is not None and config.clip_adaptive is not None:
    raise InputError(
      f'optimizer.clip_norm={config.clip_norm} and optimizer.clip_adaptive='
      f'{config.clip_adaptive} are two ways to do the same: leave one out.'
    )
  momentum, rule = config.momentum, config.decay_rule
  decay = optax.add_decayed_weights(
    config.weight_decay, mask=lambda params: decay_mask(params, rule)
  )
  rate = optax.scale_by_learning_rate(schedule)
  trace = optax.trace(decay=momentum, nesterov=config.nesterov)
  adam = optax.scale_by_adam(b1=momentum, b2=config.b2, eps=config.eps)
  steps = {
    'sgd': [decay, trace, rate],
    'sgdw': [trace, decay, rate],
    'adamw': [adam, decay, rate],
    'lars': [decay, _adapt_kernels(config.trust_coefficient), rate, trace],
    'lamb': [adam, decay, _adapt_kernels(1.0), rate],
  }[config.name]
  # Only where asked for: each is another entry in the state of a checkpoint.
  if config.clip_norm is not None:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  if config.clip_adaptive is not None:
    clip = optax.adaptive_grad_clip(config.clip_adaptive, eps=1e-3)
    steps.insert(0, optax.masked(clip, _backbone))
  if config.backbone_multiplier != 1:
    slower = optax.scale(config.backbone_multiplier)
    steps.append(optax.masked(slower, _backbone))
  if frozen_stages:
    frozen = functools.partial(_mask, lambda m: _is_frozen(m, frozen_stages))
    steps.append(optax.masked(optax.set_to_zero(), frozen))
  return optax.chain(*steps)


def _adapt_kernels(coefficient: float) -> optax.GradientTransformation:
  """Scales the update u of each kernel p by coefficient * |p| / |u|."""
  return optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient),
    lambda params: decay_mask(params, 'kernels'),
  )


def _backbone(params: Any) -> Any:
  """Returns a tree like `params`: True but in the head."""
  return _mask(lambda module: module != 'head', params)


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
