"""Metrics as sums on the device, so that batches of any size can be added."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, jax.Array]


def has_top5(num_classes: int) -> bool:
  """Whether top-5 says anything: with up to five classes it is always 1."""
  return num_classes > 5


def zeros() -> Sums:
  """Returns the sums over an empty set of images."""
  return {
    name: jnp.zeros((), jnp.float32)
    for name in ('loss', 'top1', 'top5', 'num_examples')
  }


def batch_sums(
  losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> Sums:
  """Returns the sums of the metrics over a batch.

  Losses [B] and logits [B, K] are float32, labels [B] int32. The mask, bool
  [B], is False for padding rows, which do not count.

  Returns:
    'loss'; 'top1' and 'top5', the numbers of images whose label has the largest
    or one of the five largest logits; 'num_examples'.
  """
  rank, is_ranked = label_rank(logits, labels)
  counts = mask & is_ranked
  return {
    # Do not multiply by the mask: a padding row's loss may be infinite or NaN.
    'loss': jnp.sum(jnp.where(mask, losses, 0.0)),
    'top1': jnp.sum((rank < 1) & counts, dtype=jnp.float32),
    'top5': jnp.sum((rank < 5) & counts, dtype=jnp.float32),
    'num_examples': jnp.sum(mask, dtype=jnp.float32),
  }


def label_rank(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the rank of the label's logit, and whether that rank is valid.

  The rank is the number of larger logits [B, K]. Among equal logits, that of
  the lower class index counts as larger.

  Returns:
    int32 [B], 0 if the label's logit is the largest, and bool [B], False if the
    label's logit is NaN.
  """
  # Count larger logits: `top_k` would gather a sharded batch on every device.
  classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
  is_label = classes == labels[:, None]
  label_logit = jnp.max(
    jnp.where(is_label, logits, -jnp.inf), axis=1, keepdims=True
  )
  is_larger = (logits > label_logit) | (
    (logits == label_logit) & (classes < labels[:, None])
  )
  rank = jnp.sum(is_larger, axis=1, dtype=jnp.int32)
  return rank, ~jnp.isnan(label_logit[:, 0])


def confusion(
  logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns the number of images by label and prediction, int32 [K, K].

  See `batch_sums` for the arguments. An image with NaN among its logits is left
  out, as are padding rows.
  """
  num_classes = logits.shape[1]
  counts = mask & ~jnp.any(jnp.isnan(logits), axis=1)
  predictions = jnp.argmax(logits, axis=1).astype(jnp.int32)
  zeros_ = jnp.zeros((num_classes, num_classes), jnp.int32)
  return zeros_.at[labels, predictions].add(counts.astype(jnp.int32))


def means(sums: Mapping[str, jax.Array | np.ndarray]) -> dict[str, float]:
  """Reads sums from the device and returns mean loss, top1 and top5 (0 to 1).

  All are NaN if there are no images, as when every update was skipped.
  """
  host = {name: float(value) for name, value in sums.items()}
  count = host.pop('num_examples')
  return {
    name: value / count if count else math.nan for name, value in host.items()
  }
