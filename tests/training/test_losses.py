"""Losses against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.training.losses import create_loss, cross_entropy


def _log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_smoothed_cross_entropy(smoothing):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
  targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
  expected = -(targets * _log_softmax(logits)).sum(-1)
  arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)
  actual = create_loss(label_smoothing=smoothing)(*arrays)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  if smoothing:
    assert not np.allclose(actual, cross_entropy(*arrays))


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_smoothing_out_of_range_is_named(smoothing):
  with pytest.raises(InputError, match=r'loss\.label_smoothing'):
    create_loss(label_smoothing=smoothing)
