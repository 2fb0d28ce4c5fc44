"""Moving averages of weights and statistics: their closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.training.state import update_ema
from resnet.training.step import jit_steps
from tests.runs import assert_close, batch_of, tiny


def test_the_decay_of_moving_averages_warms_up():
  """From 2 / 11; of ones, the averages are what is forgotten of the zero."""
  run = tiny(ema_decay=0.9)
  state = run.create_state().replace(
    params={'x': jnp.float32(0.0)}, batch_stats={}
  )
  state, found = state.with_new_ema(), []
  move = jax.jit(
    lambda state: update_ema(
      state, run.task.ema_decay, run.task.ema_every_steps
    )
  )
  for step in range(1, 101):
    state = state.replace(step=jnp.int32(step), params={'x': jnp.float32(1.0)})
    state = move(state)
    found.append(float(state.ema['params']['x']))
  decays = np.minimum(0.9, [(1 + n) / (10 + n) for n in range(1, 101)])
  assert decays[0] == pytest.approx(2 / 11)
  # (1 + n) / (10 + n) is 0.9 at 80.
  assert (decays < 0.9).sum() == 79
  np.testing.assert_allclose(found, 1 - np.cumprod(decays), rtol=1e-5)


def test_a_step_updates_the_averages_of_weights_and_statistics():
  """Towards the weights that it makes, at multiples of the interval."""
  run = tiny(ema_decay=0.3, ema_every_steps=2)
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  expected = jax.tree.map(np.array, state.variables)
  for step in range(1, 5):
    state, _ = steps.train(state, batch_of(run, step - 1))
    if step % 2 == 0:
      n = step // 2
      d = min(0.3, (1 + n) / (10 + n))
      expected = jax.tree.map(
        lambda mean, x, d=d: d * mean + (1 - d) * np.array(x),
        expected,
        state.variables,
      )
    assert_close(state.ema, expected, rtol=1e-5, atol=1e-7)


def test_new_averages_share_no_buffer_with_the_weights():
  """The step donates the state, and no buffer may be donated twice."""
  state = tiny(ema_decay=0.9).create_state().with_new_ema()
  places = [
    leaf.addressable_shards[0].data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((state.variables, state.ema))
  ]
  assert len(set(places)) == len(places)
