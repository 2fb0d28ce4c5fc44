"""Optimizers: Optax chains by name, and the rules of weight decay."""

from collections.abc import Callable
import functools
import re
from typing import Any

import jax
import optax

from resnet.errors import InputError
from resnet.training.lookahead import lookahead

# Which parameters decay, by name of the rule.
DECAY_RULES: dict[str, Callable[[jax.Array], bool]] = {
  # Every parameter: He et al. 2016, fb.resnet.torch.
  'all': lambda _: True,
  # Kernels of convolutions and head; not scales, not biases: Goyal et al. 2017.
  'kernels': lambda param: param.ndim > 1,
}

# Steps are int32 on the device, and numbers float32: larger ones are infinite.
_MAX_STEPS = 2**31
_MIN_FLOAT, _MAX_FLOAT = 1e-30, 3.4e38
OPTIMIZERS = ('sgd', 'sgdw', 'adamw', 'lars', 'lamb')
# Those that have Nesterov's momentum.
WITH_NESTEROV = ('sgd', 'sgdw', 'lars')


def decay_mask(params: Any, rule: str) -> Any:
  """Returns a tree like `params`: True where weight decay applies."""
  return jax.tree.map(DECAY_RULES[rule], params)


def create_optimizer(
  schedule: optax.Schedule,
  *,
  name: str,
  momentum: float,
  nesterov: bool,
  trust_coefficient: float,
  b2: float,
  eps: float,
  weight_decay: float,
  decay_rule: str,
  backbone_multiplier: float = 1.0,
  clip_norm: float | None = None,
  clip_adaptive: float | None = None,
  lookahead_steps: int | None = None,
  lookahead_share: float = 0.5,
  sam_rho: float | None = None,
  frozen_stages: int = 0,
) -> optax.GradientTransformation:
  """Returns an optimizer by name; g is the gradient, p the parameter.

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
  After all that, every `lookahead_steps` updates, the parameters go back to
  `lookahead_share` of the way since the last time (`training.lookahead`).
  `sam_rho` is a matter of the gradients (`training.step`), and only checked.

  Raises:
    InputError: an unknown name or rule, or a number out of its range.
  """
  _check_names(name, decay_rule)
  for field, value in (
    ('clip_norm', clip_norm),
    ('clip_adaptive', clip_adaptive),
    ('sam_rho', sam_rho),
  ):
    if value is not None and not _MIN_FLOAT <= value <= _MAX_FLOAT:
      raise InputError(
        f'optimizer.{field}={value} must be positive, {_MIN_FLOAT} to'
        f' {_MAX_FLOAT}: leave it out for none.'
      )
  if lookahead_steps is not None and not 0 < lookahead_steps < _MAX_STEPS:
    raise InputError(
      f'optimizer.lookahead_steps={lookahead_steps} must be positive, below'
      ' 2**31: leave it out for none.'
    )
  for field, value in (('momentum', momentum), ('b2', b2)):
    if not 0 <= value < 1:
      raise InputError(f'optimizer.{field}={value} is not in [0, 1).')
  for field, value in (
    ('trust_coefficient', trust_coefficient),
    ('eps', eps),
    ('weight_decay', weight_decay),
  ):
    if not 0 <= value <= _MAX_FLOAT:
      raise InputError(
        f'optimizer.{field}={value} is not in 0 .. {_MAX_FLOAT}.'
      )
  if not 0 <= backbone_multiplier <= 1:
    raise InputError(
      f'optimizer.backbone_multiplier={backbone_multiplier} is not in 0 .. 1.'
    )
  decay = optax.add_decayed_weights(
    weight_decay, mask=lambda params: decay_mask(params, decay_rule)
  )
  rate = optax.scale_by_learning_rate(schedule)
  trace = optax.trace(decay=momentum, nesterov=nesterov)
  adam = optax.scale_by_adam(b1=momentum, b2=b2, eps=eps)
  steps = {
    'sgd': [decay, trace, rate],
    'sgdw': [trace, decay, rate],
    'adamw': [adam, decay, rate],
    'lars': [decay, _adapt_kernels(trust_coefficient), rate, trace],
    'lamb': [adam, decay, _adapt_kernels(1.0), rate],
  }[name]
  return optax.chain(
    *_clip(clip_norm, clip_adaptive),
    *steps,
    *_slower(backbone_multiplier, frozen_stages),
    *_look_ahead(lookahead_steps, lookahead_share),
  )


def _check_names(name: str, decay_rule: str) -> None:
  if name not in OPTIMIZERS:
    raise InputError(
      f'optimizer.name={name!r} is none of {", ".join(OPTIMIZERS)}.'
    )
  if decay_rule not in DECAY_RULES:
    raise InputError(
      f'optimizer.decay_rule={decay_rule!r} is none of'
      f' {", ".join(DECAY_RULES)}.'
    )
  if name in ('lars', 'lamb') and decay_rule != 'kernels':
    raise InputError(
      f'optimizer.decay_rule={decay_rule!r} is not for {name!r}, which leaves'
      ' out biases and scales: --config.optimizer.decay_rule=kernels'
    )


def _clip(
  norm: float | None, adaptive: float | None
) -> list[optax.GradientTransformation]:
  """Returns what is done to the gradients, before anything else."""
  if norm is not None and adaptive is not None:
    raise InputError(
      f'optimizer.clip_norm={norm} and optimizer.clip_adaptive={adaptive} are'
      ' two ways to do the same: leave one of them out.'
    )
  # Only where asked for: each is another entry in the state of a checkpoint.
  if norm is not None:
    return [optax.clip_by_global_norm(norm)]
  if adaptive is not None:
    return [
      optax.masked(optax.adaptive_grad_clip(adaptive, eps=1e-3), _backbone)
    ]
  return []


def _adapt_kernels(coefficient: float) -> optax.GradientTransformation:
  """Scales the update u of each kernel p by coefficient * |p| / |u|."""
  return optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient),
    lambda params: decay_mask(params, 'kernels'),
  )


def _slower(
  backbone_multiplier: float, frozen_stages: int
) -> list[optax.GradientTransformation]:
  """Returns what is done to the updates of a network that is fine-tuned."""
  steps = []
  # Only where asked for: each is another entry in the state of a checkpoint.
  if backbone_multiplier != 1:
    steps.append(optax.masked(optax.scale(backbone_multiplier), _backbone))
  if frozen_stages:
    steps.append(
      optax.masked(
        optax.set_to_zero(),
        functools.partial(_mask, lambda m: _is_frozen(m, frozen_stages)),
      )
    )
  return steps


def _look_ahead(
  num_steps: int | None, share: float
) -> list[optax.GradientTransformation]:
  """Returns what is done to the finished updates."""
  if not 0 < share <= 1:
    raise InputError(
      f'optimizer.lookahead_share={share} is not above 0, at most 1.'
    )
  return [] if num_steps is None else [lookahead(num_steps, share)]


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
