"""Metrics as sums on the device, so that any split of the images adds up."""

from collections.abc import Mapping

import jax
from jax import lax
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
  _, guesses = lax.top_k(logits, min(5, logits.shape[-1]))
  hits = guesses == labels[:, None]
  return {
    # where, not times: a padded row may well have a loss that is not finite.
    'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    'top1': jnp.sum(hits[:, 0] & mask, dtype=jnp.float32),
    'top5': jnp.sum(jnp.any(hits, axis=1) & mask, dtype=jnp.float32),
    'num_examples': jnp.sum(mask, dtype=jnp.float32),
  }


def add(sums: Sums, more: Sums) -> Sums:
  """Returns the sums over both sets of images."""
  return jax.tree.map(jnp.add, sums, more)


def means(sums: Mapping[str, jax.Array | np.ndarray]) -> dict[str, float]:
  """Reads sums from the device; returns mean loss, top1, top5 (0 to 1)."""
  host = {name: float(value) for name, value in sums.items()}
  count = host.pop('num_examples')
  return {name: value / count for name, value in host.items()}
