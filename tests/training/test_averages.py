"""Moving averages: their closed form, and that they are PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training.step import _update_ema, jit_steps


def resolve(**fields):
  config = fake.get_config()
  config.model.bn_group_size = 8
  config.update_from_flattened_dict(fields)
  return experiment.resolve(config)


def average(values, decay, every):
  """Returns the averages after each value; the first is where they begin."""
  run = resolve(ema_decay=decay, ema_every_steps=every)
  state = run.create_state().replace(
    params={'x': jnp.float32(values[0])}, batch_stats={'y': jnp.float32(0.0)}
  )
  state, found = state.with_new_ema(), []
  move = jax.jit(lambda state: _update_ema(state, run.task))
  for step, value in enumerate(values[1:], start=1):
    state = move(
      state.replace(
        step=jnp.int32(step),
        params={'x': jnp.float32(value)},
        batch_stats={'y': jnp.float32(2 * value)},
      )
    )
    found.append((float(state.ema['params']['x']), state.ema['batch_stats']))
  return found


def test_the_decay_warms_up():
  """From 2 / 11; of ones, the averages are what is forgotten of the zero."""
  found = [x for x, _ in average([0.0, *[1.0] * 100], decay=0.9, every=1)]
  decays = np.minimum(0.9, [(1 + n) / (10 + n) for n in range(1, 101)])
  assert decays[0] == pytest.approx(2 / 11)
  # (1 + n) / (10 + n) is 0.9 at 80.
  assert (decays < 0.9).sum() == 79
  np.testing.assert_allclose(found, 1 - np.cumprod(decays), rtol=1e-5)
  # With 0.9 from the beginning, half of the zero would be there after 6.
  assert found[5] > 0.999


@pytest.mark.parametrize('every', [1, 3])
def test_they_move_at_multiples_of_the_interval(every):
  rng = np.random.default_rng(0)
  values = rng.normal(size=13)
  found = average(values, decay=0.25, every=every)
  x, y = values[0], 0.0
  for step, (ours, stats) in enumerate(found, start=1):
    if step % every == 0:
      n = step // every
      d = min(0.25, (1 + n) / (10 + n))
      x, y = d * x + (1 - d) * values[step], d * y + (1 - d) * 2 * values[step]
    assert ours == pytest.approx(x, rel=1e-5)
    assert float(stats['y']) == pytest.approx(y, rel=1e-5)


@pytest.mark.parametrize('every', [1, 4])
def test_after_the_warm_up_they_are_those_of_pytorch(every):
  """As torchvision keeps them: buffers too, every so many steps."""
  torch = pytest.importorskip('torch')
  swa = torch.optim.swa_utils
  decay = 0.15  # Less than 2 / 11: there is no warm-up.
  values = np.random.default_rng(1).normal(size=13)
  net = torch.nn.Module()
  net.x = torch.nn.Parameter(torch.tensor(values[0]))
  net.register_buffer('y', torch.tensor(0.0, dtype=torch.float64))
  theirs = swa.AveragedModel(
    net, multi_avg_fn=swa.get_ema_multi_avg_fn(decay), use_buffers=True
  )
  theirs.update_parameters(net)  # The first only copies.
  for step, (x, stats) in enumerate(average(values, decay, every), start=1):
    with torch.no_grad():
      net.x.fill_(values[step])
      net.y.fill_(2 * values[step])
    if step % every == 0:
      theirs.update_parameters(net)
    assert x == pytest.approx(theirs.module.x.detach().item(), rel=1e-5)
    assert float(stats['y']) == pytest.approx(theirs.module.y.item(), rel=1e-5)


def test_a_step_moves_the_averages_of_weights_and_statistics():
  """By the weights that it makes."""
  run = resolve(ema_decay=0.3, ema_every_steps=2)
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  expected = jax.tree.map(np.array, state.variables)
  for step in range(1, 5):
    batch = jax.device_put(run.train_reader(step - 1), run.sharding.batch)
    state, _ = steps.train(state, batch)
    if step % 2 == 0:
      n = step // 2
      d = min(0.3, (1 + n) / (10 + n))
      expected = jax.tree.map(
        lambda mean, x, d=d: d * mean + (1 - d) * np.array(x),
        expected,
        state.variables,
      )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
      state.ema,
      expected,
    )
