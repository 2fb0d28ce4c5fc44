"""Calibration error and confusion matrix."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.training import metrics

NUM_BINS = 15

Sums = dict[str, jax.Array]


def zeros(num_classes: int) -> Sums:
  """Returns the sums over no images."""
  # Each an array of its own: a step that takes them donates them.
  scalars = ('loss', 'top5', 'num_not_finite')
  bins = ('bin_count', 'bin_confidence', 'bin_top1')
  return {
    'confusion': jnp.zeros((num_classes, num_classes), jnp.int32),
    **{name: jnp.zeros((), jnp.float32) for name in scalars},
    **{name: jnp.zeros((NUM_BINS,), jnp.float32) for name in bins},
  }


def batch_sums(
  log_probabilities: jax.Array, labels: jax.Array, mask: jax.Array
) -> Sums:
  """Sums over a batch of what each image that counts adds.

  Args:
    log_probabilities: [B, K] float32; a probability may be too small for it.
    labels: [B] int32.
    mask: [B] bool, False where the row does not count.

  Returns:
    'loss', the cross entropy; 'top5'; 'num_not_finite', images with NaN among
    their logits, which are never right and in no cell of 'confusion', int32
    [K, K], by label and prediction; and by bin of the largest probability, of
    15 equal ones, closed above, 'bin_count', 'bin_confidence', the sum of that
    probability, and 'bin_top1', the number of images that are right.
  """
  num_classes = log_probabilities.shape[1]
  is_finite = ~jnp.any(jnp.isnan(log_probabilities), axis=1)
  confidence = jnp.exp(jnp.max(log_probabilities, axis=1))
  confidence = jnp.where(is_finite, confidence, 0.0)
  predictions = jnp.argmax(log_probabilities, axis=1).astype(jnp.int32)
  of_label = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
  place, _ = metrics.label_place(log_probabilities, labels)
  places = jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1
  places = jnp.clip(places, 0, NUM_BINS - 1)
  counts = mask.astype(jnp.float32)
  ranked = mask & is_finite
  is_right = ((place == 0) & is_finite).astype(jnp.float32)
  bins = jnp.zeros((NUM_BINS,), jnp.float32)
  confusion = jnp.zeros((num_classes, num_classes), jnp.int32)
  return {
    'loss': -jnp.sum(jnp.where(mask, of_label[:, 0], 0.0)),
    'top5': jnp.sum((place < 5) & ranked, dtype=jnp.float32),
    'num_not_finite': jnp.sum(mask & ~is_finite, dtype=jnp.float32),
    'confusion': confusion.at[labels, predictions].add(
      ranked.astype(jnp.int32)
    ),
    'bin_count': bins.at[places].add(counts),
    'bin_confidence': bins.at[places].add(counts * confidence),
    'bin_top1': bins.at[places].add(counts * is_right),
  }


def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
  """Returns numbers of all images.

    ece = sum over bins of |confidence - accuracy| * share of the images

  (Guo et al. 2017, "On calibration of modern neural networks", equation 3).

  Returns:
    'loss', 'top1', 'top5', 'ece', 'confidence', all but the first 0 to 1; and
    'num_examples' and 'num_not_finite'.
  """
  host = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  count = host['bin_count'].sum()
  gaps = np.abs(host['bin_confidence'] - host['bin_top1'])
  return {
    'loss': float(host['loss'] / count),
    'top1': float(host['bin_top1'].sum() / count),
    'top5': float(host['top5'] / count),
    'ece': float(gaps.sum() / count),
    'confidence': float(host['bin_confidence'].sum() / count),
    'num_examples': int(count),
    'num_not_finite': int(host['num_not_finite']),
  }


def worst_classes(confusion: np.ndarray, count: int) -> list[dict[str, Any]]:
  """Returns the classes with the least accuracy, and what they are taken for.

  Args:
    confusion: by label and prediction, [K, K].
    count: number of classes to return; those without images are left out.

  Returns:
    Of each 'label', 'top1', 'num_examples', 'taken_for' (the other class that
    is predicted most; None where none is) and 'times'.
  """
  totals = confusion.sum(axis=1)
  others = confusion - np.diag(np.diag(confusion))
  found = [
    {
      'label': int(label),
      'top1': float(confusion[label, label] / totals[label]),
      'num_examples': int(totals[label]),
      'taken_for': int(others[label].argmax()) if others[label].any() else None,
      'times': int(others[label].max()),
    }
    for label in np.flatnonzero(totals)
  ]
  return sorted(found, key=lambda x: x['top1'])[:count]
