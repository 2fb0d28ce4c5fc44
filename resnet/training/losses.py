"""Losses per example: float32 logits [B, K] and targets -> [B].

Targets are labels, int32 [B], or class probabilities, float32 [B, K].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet.errors import InputError

LossFn = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label], or its mean under the targets."""
  if targets.ndim == 1:
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, targets
    )
  return optax.losses.softmax_cross_entropy(logits, targets)


def create_loss(config: Any) -> LossFn:
  """Creates the loss of `config.loss`.

  With s = `label_smoothing` and class probabilities t:

    t' = (1 - s) * t + s / K       (Szegedy et al. 2016, section 7)

    'cross_entropy': -sum(t' * log softmax(logits))
    'binary_cross_entropy' (Wightman et al. 2021, section 3), the mean or sum
      over the classes of
        -t' * log sigmoid(logits) - (1 - t') * log sigmoid(-logits)
      With a `target_threshold`, t' becomes 1 above it and 0 otherwise.
  """
  smoothing, threshold = config.label_smoothing, config.target_threshold
  reduce = jnp.mean if config.reduction == 'mean' else jnp.sum
  is_binary = config.name == 'binary_cross_entropy'
  if not is_binary and not smoothing:
    return cross_entropy

  def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    if targets.ndim == 1:
      targets = jax.nn.one_hot(targets, logits.shape[-1])
    targets = optax.losses.smooth_labels(targets, smoothing)
    if not is_binary:
      return optax.losses.softmax_cross_entropy(logits, targets)
    if threshold is not None:
      targets = (targets > threshold).astype(logits.dtype)
    by_class = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
    return reduce(by_class, axis=-1)

  return loss


def check_threshold(config: Any, num_classes: int, *, is_mixed: bool) -> None:
  """Checks that the threshold leaves each image some classes, but not all.

  With `is_mixed`, mixup or cutmix may give an image two classes.

  Raises:
    InputError: an image would have no class, or all of them.
  """
  threshold, smoothing = config.target_threshold, config.label_smoothing
  if threshold is None:
    return
  # The lowest probability of an image's main class, and of its other classes.
  rest = smoothing / num_classes
  main = (1 - smoothing) * (0.5 if is_mixed else 1.0) + rest
  if not rest <= threshold < main:
    mixed = ', mixup or cutmix' if is_mixed else ''
    raise InputError(
      f'loss.target_threshold={threshold} is not in [{rest:.4g}, {main:.4g}):'
      f' with loss.label_smoothing={smoothing}{mixed} images would have no'
      ' class, or all of them.'
    )
