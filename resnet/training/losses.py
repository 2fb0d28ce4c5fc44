"""Losses of one example each: logits [B, K] float32, labels [B] -> [B]."""

from collections.abc import Callable

import jax
import optax

from resnet.errors import InputError

LossFn = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log softmax(logits)[label]."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def create_loss(*, label_smoothing: float) -> LossFn:
  """Returns cross entropy against (1 - s) * onehot(label) + s / K.

  Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.

  Raises:
    InputError: `label_smoothing` is not in [0, 1).
  """
  if not 0 <= label_smoothing < 1:
    raise InputError(
      f'loss.label_smoothing={label_smoothing} is not in [0, 1).'
    )
  if not label_smoothing:
    return cross_entropy

  def smoothed(logits: jax.Array, labels: jax.Array) -> jax.Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.losses.smooth_labels(targets, label_smoothing)
    return optax.losses.softmax_cross_entropy(logits, targets)

  return smoothed
