"""Metrics as sums on the device, so that any split of the images adds up."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jax.Array]


def zeros() -> Sums:
  """Returns the sums over no images."""
  return {
    name: jnp.zeros((), jnp.float32)
    for name in ('loss', 'top1', 'top5', 'num_examples')
  }


def batch_sums(
  losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> Sums:
  """Sums over a batch of what each image that counts adds.

  Args:
    losses: [B] float32.
    logits: [B, K] float32.
    labels: [B] int32.
    mask: [B] bool, False where the row is padding and does not count.

  Returns:
    'loss'; 'top1' and 'top5', the numbers of images whose label is the
    largest, or among the five largest, of its logits; 'num_examples'.
  """
  place, is_ranked = label_place(logits, labels)
  counts = mask & is_ranked
  return {
    # where, not times: a padded row may well have a loss that is not finite.
    'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    'top1': jnp.sum((place < 1) & counts, dtype=jnp.float32),
    'top5': jnp.sum((place < 5) & counts, dtype=jnp.float32),
    'num_examples': jnp.sum(mask, dtype=jnp.float32),
  }


def label_place(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns how many logits lead the label's, and whether it has a place.

  The first of equal logits leads the others.

  Args:
    logits: [B, K] float32.
    labels: [B] int32.

  Returns:
    int32 [B], 0 where the label's logit is the largest, and bool [B], False
    where the label's logit is NaN.
  """
  # By comparisons alone: `top_k` would gather a sharded batch on every device.
  classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
  is_label = classes == labels[:, None]
  label_logit = jnp.max(
    jnp.where(is_label, logits, -jnp.inf), axis=1, keepdims=True
  )
  leads = (logits > label_logit) | (
    (logits == label_logit) & (classes < labels[:, None])
  )
  place = jnp.sum(leads, axis=1, dtype=jnp.int32)
  return place, ~jnp.isnan(label_logit[:, 0])


def add(sums: Sums, more: Sums) -> Sums:
  """Returns the sums over both sets of images."""
  return jax.tree.map(jnp.add, sums, more)


def means(sums: Mapping[str, jax.Array | np.ndarray]) -> dict[str, float]:
  """Reads sums from the device; returns mean loss, top1, top5 (0 to 1).

  Over no images, where all updates of an interval were skipped: NaN.
  """
  host = {name: float(value) for name, value in sums.items()}
  count = host.pop('num_examples')
  return {
    name: value / count if count else math.nan for name, value in host.items()
  }
