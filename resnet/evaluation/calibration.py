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
  """Returns sums of zero, to which batches are added."""
  # Separate arrays, because the step donates each of them.
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
  """Returns the sums of a batch.

  Log probabilities are float32 [B, K], labels int32 [B]. The mask, bool [B], is
  False for rows that are not counted.

  The confidence of an image is its largest probability. Images are counted in
  15 equal bins of confidence, each of which includes its upper edge. An image
  with NaN among its logits is never correct, and 'confusion' leaves it out.

  Returns:
    'loss', the cross entropy; 'top5'; 'num_not_finite', the images with NaN;
    'confusion', int32 [K, K], by label and prediction; and for each bin
    'bin_count', 'bin_confidence' (the sum of confidences) and 'bin_top1' (the
    number of correct images).
  """
  is_finite = ~jnp.any(jnp.isnan(log_probabilities), axis=1)
  confidence = jnp.exp(jnp.max(log_probabilities, axis=1))
  confidence = jnp.where(is_finite, confidence, 0.0)
  predictions = jnp.argmax(log_probabilities, axis=1).astype(jnp.int32)
  label_log = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
  sums = metrics.batch_sums(-label_log[:, 0], log_probabilities, labels, mask)
  bin_index = jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1
  bin_index = jnp.clip(bin_index, 0, NUM_BINS - 1)
  counts = mask.astype(jnp.float32)
  is_correct = ((predictions == labels) & is_finite).astype(jnp.float32)
  bins = jnp.zeros((NUM_BINS,), jnp.float32)
  return {
    'loss': sums['loss'],
    'top5': sums['top5'],
    'num_not_finite': jnp.sum(mask & ~is_finite, dtype=jnp.float32),
    'confusion': metrics.confusion(log_probabilities, labels, mask),
    'bin_count': bins.at[bin_index].add(counts),
    'bin_confidence': bins.at[bin_index].add(counts * confidence),
    'bin_top1': bins.at[bin_index].add(counts * is_correct),
  }


def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
  """Computes the metrics of an evaluation from its sums.

  The expected calibration error is (Guo et al. 2017, "On calibration of modern
  neural networks", equation 3)

    ece = sum over bins of |confidence - accuracy| * share of the images

  Returns:
    'loss'; 'top1', 'top5' (see `metrics.has_top5`), 'ece' and 'confidence', 0
    to 1; 'num_examples' and 'num_not_finite'.
  """
  host = {name: np.asarray(value, np.float64) for name, value in sums.items()}
  count = host['bin_count'].sum()
  gaps = np.abs(host['bin_confidence'] - host['bin_top1'])
  top5 = {}
  if metrics.has_top5(len(host['confusion'])):
    top5 = {'top5': float(host['top5'] / count)}
  return {
    'loss': float(host['loss'] / count),
    'top1': float(host['bin_top1'].sum() / count),
    **top5,
    'ece': float(gaps.sum() / count),
    'confidence': float(host['bin_confidence'].sum() / count),
    'num_examples': int(count),
    'num_not_finite': int(host['num_not_finite']),
  }


def worst_classes(
  confusion: np.ndarray, count: int = 5
) -> list[dict[str, Any]]:
  """Returns the `count` classes of lowest accuracy and their main confusion.

  Takes the counts by label and prediction, [K, K]. Classes without images are
  left out.

  Returns:
    A dict for each class: 'label', 'top1', 'num_examples', 'taken_for' (the
    wrong class predicted most often, or None) and 'times' (how often).
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
