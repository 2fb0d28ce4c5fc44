"""Losses against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet.training.losses import create_loss
from tests.runs import section


def examples(num_classes):
  """Returns float64 logits, labels, and shares of two classes."""
  rng = np.random.default_rng(0)
  labels, others = rng.integers(0, num_classes, (2, 6))
  eye, share = np.eye(num_classes), rng.random((6, 1))
  shares = eye[labels] * share + eye[others] * (1 - share)
  return rng.normal(size=(6, num_classes)), labels, shares


def apply(loss, logits, targets):
  """Returns float32 losses of float64 logits and of labels or shares."""
  dtype = jnp.int32 if targets.ndim == 1 else jnp.float32
  return loss(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, dtype))


@pytest.mark.parametrize(
  ('name', 'smoothing', 'threshold', 'reduction'),
  [
    ('cross_entropy', 0.0, None, 'mean'),
    ('cross_entropy', 0.1, None, 'mean'),
    ('binary_cross_entropy', 0.0, None, 'mean'),
    ('binary_cross_entropy', 0.1, None, 'sum'),
    ('binary_cross_entropy', 0.1, 0.3, 'mean'),
    ('binary_cross_entropy', 0.0, 0.0, 'sum'),
  ],
)
def test_losses_follow_their_formulas(name, smoothing, threshold, reduction):
  logits, labels, shares = examples(num_classes=5)
  fields = {'label_smoothing': smoothing, 'target_threshold': threshold}
  loss = create_loss(section('loss', name=name, reduction=reduction, **fields))
  for given, share in ((labels, np.eye(5)[labels]), (shares, shares)):
    targets = (1 - smoothing) * share + smoothing / 5
    if threshold is not None:
      targets = (targets > threshold) * 1.0
    if name == 'cross_entropy':
      sums = np.exp(logits).sum(-1, keepdims=True)
      expected = -(targets * (logits - np.log(sums))).sum(-1)
    else:
      of_classes = targets * np.log1p(np.exp(-logits))
      of_classes += (1 - targets) * np.log1p(np.exp(logits))
      expected = getattr(of_classes, reduction)(-1)
    actual = apply(loss, logits, given)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
