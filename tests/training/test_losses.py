"""Losses against NumPy, and against timm's."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.training.losses import create_loss


def make(name='cross_entropy', smoothing=0.0, threshold=None, reduction='mean'):
  return create_loss(
    name=name,
    label_smoothing=smoothing,
    target_threshold=threshold,
    reduction=reduction,
  )


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
  loss = make(name, smoothing, threshold, reduction)
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


@pytest.mark.parametrize(
  ('threshold', 'reduction'), [(None, 'mean'), (0.2, 'sum')]
)
def test_binary_cross_entropy_is_that_of_timm(threshold, reduction):
  torch = pytest.importorskip('torch')
  timm_loss = pytest.importorskip('timm.loss')
  logits, labels, shares = examples(num_classes=7)
  theirs = timm_loss.BinaryCrossEntropy(
    smoothing=0.1, target_threshold=threshold, sum_classes=reduction == 'sum'
  )
  ours = make('binary_cross_entropy', 0.1, threshold, reduction)
  # timm's Mixup has smoothed the shares that timm's loss is given.
  smoothed = 0.9 * shares + 0.1 / 7
  for given, other in ((labels, labels), (shares, smoothed)):
    expected = float(theirs(torch.tensor(logits), torch.tensor(other)))
    actual = apply(ours, logits, given).mean()
    assert float(actual) == pytest.approx(expected, rel=1e-5)


BINARY = {'name': 'binary_cross_entropy'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'smoothing': -0.1}, r'label_smoothing=-0.1 is not in \[0, 1\)'),
    ({'smoothing': 1.0}, r'label_smoothing=1.0 is not in \[0, 1\)'),
    ({**BINARY, 'threshold': 1.0}, r'threshold=1.0 is not in \[0, 1\)'),
    ({**BINARY, 'reduction': 'max'}, "'max' is none of mean, sum"),
    ({'name': 'hinge'}, "'hinge' is none of cross_entropy, binary_"),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    make(**fields)
