"""Views, calibration and confusions against NumPy and torchvision."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.evaluation import calibration, views
from resnet.files import to_json


def examples(count=400, num_classes=7):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(count, num_classes)) * 3
  labels = np.where(
    rng.random(count) < 0.5,
    logits.argmax(1),
    rng.integers(0, num_classes, count),
  )
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return probabilities, labels.astype(np.int32), rng.random(count) < 0.8


def sums_of(log_probabilities, labels, mask):
  return jax.device_get(
    calibration.batch_sums(
      jnp.asarray(log_probabilities, jnp.float32),
      jnp.array(labels),
      jnp.array(mask),
    )
  )


def test_the_calibration_error_is_that_of_its_definition():
  probabilities, labels, mask = examples()
  found = calibration.summarize(sums_of(np.log(probabilities), labels, mask))
  p, y = probabilities[mask], labels[mask]
  confidence, is_right = p.max(1), p.argmax(1) == y
  expected, edges = 0.0, np.linspace(0, 1, 16)
  for low, high in itertools.pairwise(edges):
    inside = (confidence > low) & (confidence <= high)
    if inside.any():
      gap = abs(confidence[inside].mean() - is_right[inside].mean())
      expected += inside.mean() * gap
  assert found['ece'] == pytest.approx(expected, rel=1e-4)
  assert found['top1'] == pytest.approx(is_right.mean())
  rank = (p > p[np.arange(len(y)), y][:, None]).sum(1)
  assert found['top5'] == pytest.approx((rank < 5).mean())
  assert found['loss'] == pytest.approx(
    -np.log(p[np.arange(len(y)), y]).mean(), rel=1e-5
  )
  assert found['num_examples'] == mask.sum()
  two = calibration.summarize(sums_of(np.zeros((1, 2)), [0], [True]))
  assert two['top1'] == 1 and 'top5' not in two  # It would always be 1.


def test_worst_classes_name_their_main_confusion():
  probabilities, labels, mask = examples()
  confusion = sums_of(np.log(probabilities), labels, mask)['confusion']
  expected = np.zeros((7, 7), int)
  predictions = probabilities.argmax(1)[mask]
  np.add.at(expected, (labels[mask], predictions), 1)
  np.testing.assert_array_equal(confusion, expected)
  table = np.array([[4, 0, 0], [1, 2, 3], [0, 0, 0]])
  found = calibration.worst_classes(table, 5)
  names = ('label', 'top1', 'num_examples', 'taken_for', 'times')
  assert [tuple(row[name] for name in names) for row in found] == [
    (1, 2 / 6, 6, 2, 3),
    (0, 1.0, 4, None, 0),
  ]


def test_probabilities_are_averaged_as_logarithms():
  logits = [jnp.array([[0.0, jnp.log(3.0)]]), jnp.array([[0.0, 0.0]])]
  np.testing.assert_allclose(
    jnp.exp(views.mean_log_probabilities(logits)), [[0.375, 0.625]], rtol=1e-6
  )


def test_tiny_probabilities_and_nan_never_count_as_correct():
  """Probabilities of float32 would all be 0 but for the first one."""
  logits = np.float32([[0, -200, -300, -400, -500, -600, -700]])
  logs = np.concatenate([jax.nn.log_softmax(logits), np.full((1, 7), np.nan)])
  for label, top5 in ((1, 1), (6, 0)):
    found = sums_of(logs, np.int32([label, 0]), [True, True])
    assert (found['top5'], found['num_not_finite']) == (top5, 1)
    assert found['bin_top1'].sum() == 0 and found['confusion'].sum() == 1
  one = calibration.summarize(sums_of(logs[:1], np.int32([6]), [True]))
  assert one['loss'] == pytest.approx(700)
  report = to_json({'loss': float('inf'), 'bins': [float('nan'), 1.5]})
  assert json.loads(report) == {'loss': None, 'bins': [None, 1.5]}
