"""Sums of metrics, with padding."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet.training import metrics


def test_sums_exclude_masked_rows_and_can_be_added():
  logits = jnp.asarray(
    [
      [9.0, 1, 2, 3, 4, 5, 6],  # label 0: first
      [9.0, 8, 7, 6, 5, 4, 3],  # label 4: fifth
      [9.0, 8, 7, 6, 5, 4, 3],  # label 5: sixth
      [9.0, 0, 0, 0, 0, 0, 0],  # padding
    ]
  )
  labels = jnp.asarray([0, 4, 5, 0], jnp.int32)
  mask = jnp.asarray([True, True, True, False])
  losses = jnp.asarray([1.0, 2.0, 3.0, np.nan])
  sums = metrics.batch_sums(losses, logits, labels, mask)
  assert {name: float(value) for name, value in sums.items()} == {
    'loss': 6.0,
    'top1': 1.0,
    'top5': 2.0,
    'num_examples': 3.0,
  }
  both = jax.tree.map(lambda zero, x: zero + x + x, metrics.zeros(), sums)
  assert metrics.means(both) == {'loss': 2.0, 'top1': 1 / 3, 'top5': 2 / 3}


def test_ties_go_to_the_first_class_and_nan_is_never_correct():
  nan = float('nan')
  sums = metrics.batch_sums(
    jnp.zeros(4),
    jnp.asarray([[1.0, 1.0], [1.0, 1.0], [nan, nan], [nan, 1.0]]),
    jnp.asarray([0, 1, 0, 0], jnp.int32),
    jnp.asarray([True] * 4),
  )
  assert float(sums['top1']) == 1.0
  assert float(sums['top5']) == 2.0
