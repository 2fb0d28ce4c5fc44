"""Losses against NumPy, and against timm's."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.training.losses import create_loss, cross_entropy


def make(**fields):
  defaults = {
    'name': 'cross_entropy',
    'label_smoothing': 0.0,
    'target_threshold': None,
    'reduction': 'mean',
  }
  return create_loss(**{**defaults, **fields})


def _log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _log_sigmoid(logits):
  return -np.log1p(np.exp(-logits))


def _examples(num_classes=5):
  """Returns float64 logits, labels, and shares of two classes."""
  rng = np.random.default_rng(0)
  labels, others = rng.integers(0, num_classes, (2, 6))
  eye, share = np.eye(num_classes), rng.random((6, 1))
  shares = eye[labels] * share + eye[others] * (1 - share)
  return rng.normal(size=(6, num_classes)), labels, shares


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_smoothed_cross_entropy(smoothing):
  logits, labels, shares = _examples()
  loss = make(label_smoothing=smoothing)
  for given, dtype, share in (
    (labels, jnp.int32, np.eye(5)[labels]),
    (shares, jnp.float32, shares),
  ):
    targets = (1 - smoothing) * share + smoothing / 5
    expected = -(targets * _log_softmax(logits)).sum(-1)
    arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(given, dtype)
    actual = loss(*arrays)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    if smoothing:
      assert not np.allclose(actual, cross_entropy(*arrays))


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('threshold', [None, 0.0, 0.3])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_cross_entropy(smoothing, threshold, reduction):
  logits, labels, shares = _examples()
  loss = make(
    name='binary_cross_entropy',
    label_smoothing=smoothing,
    target_threshold=threshold,
    reduction=reduction,
  )
  for given, dtype, share in (
    (labels, jnp.int32, np.eye(5)[labels]),
    (shares, jnp.float32, shares),
  ):
    targets = (1 - smoothing) * share + smoothing / 5
    if threshold is not None:
      targets = (targets > threshold) * 1.0
    of_classes = -targets * _log_sigmoid(logits)
    of_classes -= (1 - targets) * _log_sigmoid(-logits)
    expected = getattr(of_classes, reduction)(-1)
    actual = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(given, dtype))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('sum_classes', [False, True])
@pytest.mark.parametrize('threshold', [None, 0.2])
def test_binary_cross_entropy_is_that_of_timm(threshold, sum_classes):
  torch = pytest.importorskip('torch')
  timm_loss = pytest.importorskip('timm.loss')
  logits, labels, shares = _examples(num_classes=7)
  theirs = timm_loss.BinaryCrossEntropy(
    smoothing=0.1, target_threshold=threshold, sum_classes=sum_classes
  )
  ours = make(
    name='binary_cross_entropy',
    label_smoothing=0.1,
    target_threshold=threshold,
    reduction='sum' if sum_classes else 'mean',
  )
  # timm's Mixup has smoothed the shares that timm's loss is given.
  smoothed = 0.9 * shares + 0.1 / 7
  for given, dtype, other in (
    (labels, jnp.int32, labels),
    (shares, jnp.float32, smoothed),
  ):
    expected = float(theirs(torch.tensor(logits), torch.tensor(other)))
    actual = ours(jnp.asarray(logits, jnp.float32), jnp.asarray(given, dtype))
    assert float(actual.mean()) == pytest.approx(expected, rel=1e-5)


def test_soft_cross_entropy_is_that_of_timm():
  torch = pytest.importorskip('torch')
  timm_loss = pytest.importorskip('timm.loss')
  logits, _, shares = _examples()
  expected = timm_loss.SoftTargetCrossEntropy()(
    torch.tensor(logits), torch.tensor(0.9 * shares + 0.1 / 5)
  )
  actual = make(label_smoothing=0.1)(
    jnp.asarray(logits, jnp.float32), jnp.asarray(shares, jnp.float32)
  )
  assert float(actual.mean()) == pytest.approx(float(expected), rel=1e-5)


BINARY = {'name': 'binary_cross_entropy'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'label_smoothing': -0.1}, r'label_smoothing=-0.1 is not in \[0, 1\)'),
    ({'label_smoothing': 1.0}, r'label_smoothing=1.0 is not in \[0, 1\)'),
    ({**BINARY, 'target_threshold': 1.0}, r'threshold=1.0 is not in \[0, 1\)'),
    ({**BINARY, 'target_threshold': -0.1}, r'threshold=-0.1 is not in'),
    ({'target_threshold': 0.2}, "mean nothing to 'cross_entropy'"),
    ({'reduction': 'sum'}, "mean nothing to 'cross_entropy'"),
    ({**BINARY, 'reduction': 'max'}, "'max' is none of mean, sum"),
    ({'name': 'hinge'}, "'hinge' is none of cross_entropy, binary_"),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    make(**fields)
