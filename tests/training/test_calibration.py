"""Views, calibration and confusions against NumPy and torchvision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.training import calibration, views


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


def sums_of(probabilities, labels, mask):
  return jax.device_get(
    calibration.batch_sums(
      jnp.asarray(probabilities, jnp.float32),
      jnp.array(labels),
      jnp.array(mask),
    )
  )


def test_the_calibration_error_is_that_of_its_definition():
  probabilities, labels, mask = examples()
  found = calibration.summarize(sums_of(probabilities, labels, mask))
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


def test_confusions_and_the_worst_classes():
  probabilities, labels, mask = examples()
  confusion = sums_of(probabilities, labels, mask)['confusion']
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


def test_ten_crops_are_those_of_torchvision():
  torch = pytest.importorskip('torch')
  v2 = pytest.importorskip('torchvision.transforms.v2')
  image = np.random.default_rng(0).integers(0, 256, (17, 15, 3), np.uint8)
  theirs = v2.TenCrop(9)(torch.tensor(image.transpose(2, 0, 1)))
  ours = views.cut(jnp.array(image[None]), 9, 'ten')
  assert len(ours) == len(theirs) == 10
  # Theirs are also of the mirrored image: right corners come before left ones.
  order = [0, 1, 2, 3, 4, 6, 5, 8, 7, 9]
  for view, place in zip(ours, order, strict=True):
    np.testing.assert_array_equal(
      view[0], theirs[place].numpy().transpose(1, 2, 0)
    )


def test_a_flip_is_two_views_and_probabilities_are_averaged():
  image = jnp.arange(24, dtype=jnp.uint8).reshape(1, 4, 6, 1)
  first, mirrored = views.cut(image, 4, 'flip')
  np.testing.assert_array_equal(first, image[:, :, 1:5])
  np.testing.assert_array_equal(mirrored, first[:, :, ::-1])
  (only,) = views.cut(image, 4, 'center')
  np.testing.assert_array_equal(only, first)
  logits = [jnp.array([[0.0, jnp.log(3.0)]]), jnp.array([[0.0, 0.0]])]
  np.testing.assert_allclose(
    views.mean_probabilities(logits), [[0.375, 0.625]], rtol=1e-6
  )
