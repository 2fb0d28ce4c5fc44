"""The update: against NumPy-free formulas, over devices, in parts."""

import dataclasses
import re

import jax
from jax.sharding import AxisType, Mesh
import numpy as np
import optax
import pytest

from configs import fake
from resnet import experiment
from resnet.errors import InputError
from resnet.training import replay
from resnet.training.sharding import DataSharding
from resnet.training.step import gradients, jit_steps


def configure(**changes):
  config = fake.get_config()
  config.model.bn_group_size = 8
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return experiment.resolve(config)


def on_devices(run, count):
  mesh = Mesh(
    np.array(jax.devices()[:count]), ('data',), axis_types=(AxisType.Auto,)
  )
  return dataclasses.replace(run, sharding=DataSharding(mesh))


def train(run, num_steps):
  """Returns the final state and the loss of each step."""
  steps = jit_steps(run.task, run.sharding)
  state, losses = run.create_state(), []
  for step in range(num_steps):
    batch = jax.device_put(run.train_reader(step), run.sharding.batch)
    state, metrics = steps.train(state, batch)
    losses.append(float(metrics['loss']) / float(metrics['num_examples']))
  assert steps.train._cache_size() == 1
  return jax.device_get(state), losses


def assert_close(a, b, rtol, atol=0.0):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


def test_one_device_equals_eight_for_20_steps():
  run = configure(log_every_steps=1, schedule__learning_rate=0.4)
  _, one = train(on_devices(run, 1), 20)
  _, eight = train(on_devices(run, 8), 20)
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  assert one[-1] < one[0] - 0.05


def test_clipping_is_by_the_norm_over_all_devices():
  """The update is as long as it may be, rate times norm, on any number."""
  run = configure(
    optimizer__clip_norm=0.01,
    optimizer__momentum=0.0,
    optimizer__weight_decay=0.0,
    schedule__learning_rate=40.0,
  )
  before = jax.device_get(run.create_state().params)
  moves = []
  for count in (1, 8):
    state, _ = train(on_devices(run, count), 1)
    moves.append(jax.tree.map(np.subtract, state.params, before))
    length = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(moves[-1])))
    # The rate is scaled to 64 images.
    assert length == pytest.approx(10.0 * 0.01, rel=1e-4)
  assert_close(*moves, rtol=1e-3, atol=1e-6)


def test_sam_is_that_of_optax_but_for_the_statistics():
  """These are of the weights, not of where the loss is higher."""
  rho = 0.2
  run = configure(
    log_every_steps=1, optimizer__sam_rho=rho, schedule__learning_rate=0.4
  )
  ours, losses = train(run, 4)
  plain = configure(log_every_steps=1, schedule__learning_rate=0.4)
  uphill = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
  sam = optax.contrib.sam(plain.task.tx, uphill, opaque_mode=True)

  @jax.jit
  def step(state, opt_state, batch):
    def grads_at(params, _=None):
      return gradients(state.replace(params=params), batch, task=plain.task)

    grads, batch_stats, sums = grads_at(state.params)
    updates, opt_state = sam.update(
      grads, opt_state, state.params, grad_fn=lambda *args: grads_at(*args)[0]
    )
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
    )
    return state, opt_state, sums['loss']

  theirs, expected = plain.create_state(), []
  opt_state = sam.init(theirs.params)
  for i in range(4):
    batch = jax.device_put(run.train_reader(i), run.sharding.batch)
    theirs, opt_state, loss = step(theirs, opt_state, batch)
    expected.append(float(loss) / 64)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert_close(ours.params, theirs.params, rtol=1e-3, atol=1e-5)
  assert_close(ours.batch_stats, theirs.batch_stats, rtol=1e-4, atol=1e-5)
  _, flat = train(plain, 4)
  assert flat[0] == pytest.approx(losses[0], rel=1e-6)
  assert flat[1:] != pytest.approx(losses[1:], rel=1e-3)


def test_sam_sees_the_whole_batch_in_parts_and_split_over_devices():
  fields = {'optimizer__sam_rho': 0.2, 'model__bn_group_size': 2}
  whole, _ = train(configure(**fields), 2)
  parts, _ = train(
    configure(accumulation_steps=4, sharding__fsdp=4, **fields), 2
  )
  assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-5)


def test_gradients_uphill_that_are_not_finite_are_skipped_and_shown():
  run = configure(optimizer__sam_rho=1e30)
  steps = jit_steps(run.task, run.sharding)
  batch = jax.device_put(run.train_reader(0), run.sharding.batch)
  lines = replay._inspect(run, run.create_state(), batch, 1)
  assert '0 of the gradients are not finite' in lines
  (line,) = [x for x in lines if 'of the gradients uphill are not' in x]
  assert int(line.split()[0]) > 0
  state, _ = steps.train(run.create_state(), batch)
  assert int(state.skipped_steps) == 1
  jax.tree.map(
    np.testing.assert_array_equal, state.params, run.create_state().params
  )


def test_a_step_back_that_is_skipped_is_made_up_for():
  """The slow weights stay beside the weights, also in checkpoints."""
  run = configure(optimizer__lookahead_steps=2)
  steps = jit_steps(run.task, run.sharding)
  state, slow = run.create_state(), []
  good = jax.device_put(run.train_reader(0), run.sharding.batch)
  for step in range(5):
    kernel = state.params['head']['kernel']
    if step == 3:  # The second step back; spoiled, and put right after it.
      state = _with_head_kernel(state, kernel.at[:, 0].set(np.inf))
      kernel = np.array(kernel)
    state, _ = steps.train(state, good)
    if step == 3:
      kernel = jax.device_put(kernel, run.sharding.replicated)
      state = _with_head_kernel(state, kernel)
    slow.append(np.array(state.opt_state[-1].slow['head']['kernel']))
  assert int(state.skipped_steps) == 1
  assert np.array_equal(slow[0], run.create_state().params['head']['kernel'])
  for step, is_new in ((1, True), (2, False), (3, False), (4, False)):
    assert (not np.array_equal(slow[step], slow[step - 1])) == is_new, step
  state, _ = steps.train(state, good)
  last = state.opt_state[-1].slow['head']['kernel']
  assert not np.array_equal(last, slow[-1])
  np.testing.assert_allclose(
    state.params['head']['kernel'], last, rtol=1e-6, atol=1e-7
  )


def _with_head_kernel(state, kernel):
  head = {**state.params['head'], 'kernel': kernel}
  return state.replace(params={**state.params, 'head': head})


def test_a_clipped_gradient_that_is_not_finite_is_skipped():
  run = configure(optimizer__clip_norm=0.01)
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  batch = jax.device_put(run.train_reader(0), run.sharding.batch)
  kernel = state.params['head']['kernel'].at[:, 0].set(np.inf)
  state = _with_head_kernel(state, kernel)
  before = jax.device_get(state.params)
  state, _ = steps.train(state, batch)
  assert int(state.skipped_steps) == 1
  jax.tree.map(np.testing.assert_array_equal, before, state.params)


def test_parts_equal_the_whole_batch_with_the_same_groups():
  groups = {'model__bn_group_size': 2}  # 64 images / 8 devices / 4 parts.
  whole, whole_losses = train(configure(**groups), 3)
  parts, parts_losses = train(configure(accumulation_steps=4, **groups), 3)
  np.testing.assert_allclose(whole_losses, parts_losses, rtol=1e-5)
  assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-5)
  assert_close(whole.batch_stats, parts.batch_stats, rtol=1e-3, atol=1e-5)
  assert_close(whole.sums, parts.sums, rtol=1e-5)


def test_parts_without_groups_have_statistics_of_their_own():
  _, whole = train(configure(model__bn_group_size=None), 2)
  _, parts = train(
    configure(model__bn_group_size=None, accumulation_steps=2), 2
  )
  assert whole != pytest.approx(parts, rel=1e-5)


def test_sums_begin_anew_after_each_log_line():
  run = configure(log_every_steps=3)
  steps = jit_steps(run.task, run.sharding)
  state, counts = run.create_state(), []
  for step in range(7):
    batch = jax.device_put(run.train_reader(step), run.sharding.batch)
    state, metrics = steps.train(state, batch)
    counts.append(float(metrics['num_examples']) / 64)
  assert counts == [1, 2, 3, 1, 2, 3, 1]


def test_the_learning_rate_shown_is_that_of_the_update():
  run = configure(schedule__warmup_epochs=0.5, schedule__decay_epochs=())
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  head = np.asarray(state.params['head']['bias'])
  batch = jax.device_put(run.train_reader(0), run.sharding.batch)
  state, metrics = steps.train(state, batch)
  # Four steps of warm-up to 0.1 * 64 / 256.
  assert float(metrics['learning_rate']) == pytest.approx(0.025 / 4)
  assert int(state.step) == 1
  (velocity,) = [
    x.trace['head']['bias'] for x in state.opt_state if hasattr(x, 'trace')
  ]
  np.testing.assert_allclose(
    state.params['head']['bias'], head - 0.025 / 4 * velocity, rtol=1e-5
  )


def test_normalization_uses_mean_and_std_of_each_channel():
  run = configure(data__mean=(10.0, 20.0, 30.0), data__std=(1.0, 2.0, 4.0))
  images = np.full((1, 2, 2, 3), 50, np.uint8)
  np.testing.assert_allclose(
    run.task.normalize(images)[0, 0, 0], [40.0, 15.0, 5.0]
  )


def test_bfloat16_keeps_float32_state_and_metrics():
  state, losses = train(configure(model__dtype='bfloat16'), 2)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(state)}
  assert dtypes == {'float32', 'int32'}
  assert np.isfinite(losses).all()


@pytest.mark.parametrize(('group', 'most'), [(8, 4), (None, None)])
def test_groups_on_a_device_leave_only_the_gradients_to_reduce(group, most):
  run = configure(model__bn_group_size=group)
  steps = jit_steps(run.task, run.sharding)
  batch = jax.eval_shape(lambda: run.train_reader(0))
  hlo = steps.train.lower(run.abstract_state(), batch).compile().as_text()
  all_reduces = re.findall(r' all-reduce(?:-start)?\(', hlo)
  others = re.findall(
    r' (?:all-gather|all-to-all|collective-permute|reduce-scatter)\w*\(', hlo
  )
  num_norms = 7
  assert not others
  if most is None:
    # Statistics forward and backward: so the count above can fail.
    assert len(all_reduces) >= 2 * num_norms
  else:
    assert 1 <= len(all_reduces) <= most


def test_a_part_moves_nothing_and_costs_its_share():
  def compiled(**changes):
    run = configure(model__bn_group_size=2, **changes)
    batch = jax.eval_shape(lambda: run.train_reader(0))
    steps = jit_steps(run.task, run.sharding)
    return steps.train.lower(run.abstract_state(), batch).compile()

  whole, parts = compiled(), compiled(accumulation_steps=4)
  moved = r' (?:all-gather|all-to-all|collective-permute)\w*\('
  assert not re.findall(moved, parts.as_text())
  # XLA counts the body of the loop over parts once.
  share = parts.cost_analysis()['flops'] / whole.cost_analysis()['flops']
  assert 0.2 < share < 0.35


def test_a_group_over_several_devices_is_refused_for_parts():
  with pytest.raises(InputError, match='8 devices, 2 images'):
    configure(accumulation_steps=4, model__bn_group_size=8)


def test_steps_are_compiled_once_and_read_nothing_back():
  run = configure()
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  batches = [
    jax.device_put(run.train_reader(step), run.sharding.batch)
    for step in range(3)
  ]
  with jax.transfer_guard_device_to_host('disallow'):
    for batch in batches:
      state, _ = steps.train(state, batch)
  assert steps.train._cache_size() == 1
  assert int(state.step) == 3
