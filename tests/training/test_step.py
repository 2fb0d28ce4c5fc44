"""The update: closed forms, Optax's, over devices and in micro-batches."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet import experiment
from resnet.errors import InputError
from resnet.training import guards
from resnet.training.step import gradients, jit_steps
from tests.runs import (
  assert_close,
  batch_of,
  compilations,
  compile_step,
  fake_config,
  tiny,
  train_steps,
)

NUM_NORMS = 3


resolve = functools.partial(tiny, model__bn_group_size=8, log_every_steps=1)


def with_head_kernel(state, kernel):
  head = {**state.params['head'], 'kernel': kernel}
  return state.replace(params={**state.params, 'head': head})


def test_one_device_gives_the_losses_of_eight_for_20_steps():
  config = fake_config(
    model__bn_group_size=8, log_every_steps=1, schedule__learning_rate=0.4
  )
  one, eight = (
    train_steps(experiment.resolve(config, devices=devices), 20)[1]
    for devices in (jax.devices()[:1], jax.devices())
  )
  np.testing.assert_allclose(one, eight, rtol=1e-5)
  assert one[-1] < one[0] - 0.05


def test_sam_equals_that_of_optax_except_for_the_statistics():
  """The statistics are of the weights, not of where the loss is higher."""
  rho = 0.2
  run = resolve(optimizer__sam_rho=rho, schedule__learning_rate=0.4)
  ours, losses = train_steps(run, 4)
  plain = resolve(schedule__learning_rate=0.4)
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
    theirs, opt_state, loss = step(theirs, opt_state, batch_of(run, i))
    expected.append(float(loss) / 64)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert_close(ours.params, theirs.params, rtol=1e-3, atol=1e-5)
  assert_close(ours.batch_stats, theirs.batch_stats, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sam_is_the_same_with_micro_batches_and_fsdp():
  fields = {'optimizer__sam_rho': 0.2, 'model__bn_group_size': 2}
  whole, _ = train_steps(resolve(**fields), 2)
  parts, _ = train_steps(
    resolve(accumulation_steps=2, sharding__fsdp=4, **fields), 2
  )
  assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-5)


def test_a_skipped_update_advances_only_the_schedule():
  tx = optax.chain(
    optax.scale_by_adam(), optax.scale_by_schedule(lambda _: 1.0)
  )
  params = jnp.ones(2)
  old = tx.init(params)
  with jax.numpy_dtype_promotion('standard'):  # Optax's Adam: float ** count.
    _, new = tx.update(params, old, params)
  adam, schedule = guards.choose(jnp.bool_(False), new, old)
  assert (adam.count, schedule.count) == (0, 1)
  np.testing.assert_array_equal(adam.mu, np.zeros(2))


def test_updates_that_are_not_finite_are_skipped_and_counted():
  """Also where the gradients are clipped."""
  run = resolve(optimizer__clip_norm=0.01, log_every_steps=4)
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  kernel = state.params['head']['kernel']
  good = jax.device_get(state)
  state = with_head_kernel(state, kernel.at[:, 0].set(np.inf))
  bad = jax.device_get(state)
  for count in (1, 2):
    state, metrics = steps.train(state, batch_of(run))
    assert int(metrics['skipped_in_row']) == count
  assert int(state.step) == 2
  assert float(metrics['num_examples']) == 0
  assert_close(bad.variables, state.variables)
  kernel = jax.device_put(
    good.params['head']['kernel'], run.sharding.replicated
  )
  state = with_head_kernel(state, kernel)
  state, metrics = steps.train(state, batch_of(run))
  assert int(metrics['skipped_in_row']) == 0
  assert int(metrics['skipped_steps']) == 2
  assert float(metrics['num_examples']) == 64
  assert not np.array_equal(
    good.params['head']['bias'], state.params['head']['bias']
  )


def test_micro_batches_give_the_update_of_the_whole_batch():
  groups = {'model__bn_group_size': 2}  # 64 images / 8 devices / 4 parts.
  whole, whole_losses = train_steps(resolve(**groups), 3)
  run = resolve(accumulation_steps=4, **groups)
  assert run.task.unroll_micro_batches
  task = dataclasses.replace(run.task, unroll_micro_batches=False)
  for other in (run, dataclasses.replace(run, task=task)):
    parts, parts_losses = train_steps(other, 3)
    np.testing.assert_allclose(whole_losses, parts_losses, rtol=1e-5)
    assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-5)
    assert_close(whole.batch_stats, parts.batch_stats, rtol=1e-3, atol=1e-5)
    assert_close(whole.sums, parts.sums, rtol=1e-5)
  with pytest.raises(InputError, match='8 devices, 2 images'):
    resolve(accumulation_steps=4, model__bn_group_size=8)


def test_steps_compile_once_and_transfer_nothing_to_the_host():
  """The sums start anew after each log line; the rate shown is the one used."""
  run = resolve(
    log_every_steps=3, schedule__warmup_epochs=0.5, schedule__decay_epochs=()
  )
  steps = jit_steps(run.task, run.sharding)
  state, found = run.create_state(), []
  bias = np.asarray(state.params['head']['bias'])
  batches = [batch_of(run, step) for step in range(7)]
  with (
    compilations() as compiled,
    jax.transfer_guard_device_to_host('disallow'),
  ):
    for batch in batches:
      state, metrics = steps.train(state, batch)
      if not found:
        first = jax.tree.map(jax.numpy.copy, state)
      found.append(metrics)
  assert [name for _, name in compiled].count('jit(train_step)') == 1
  assert int(state.step) == 7
  counts = [float(metrics['num_examples']) / 64 for metrics in found]
  assert counts == [1, 2, 3, 1, 2, 3, 1]
  # Four steps of warm-up to 0.1 * 64 / 256.
  rate = 0.025 / 4
  assert float(found[0]['learning_rate']) == pytest.approx(rate)
  (velocity,) = [
    x.trace['head']['bias'] for x in first.opt_state if hasattr(x, 'trace')
  ]
  np.testing.assert_allclose(
    first.params['head']['bias'], bias - rate * velocity, rtol=1e-5
  )


def test_bfloat16_keeps_float32_state_and_metrics():
  run = resolve(model__dtype='bfloat16')
  steps = jit_steps(run.task, run.sharding)
  batch = jax.eval_shape(lambda: run.train_reader(0))
  results = jax.eval_shape(steps.train, run.abstract_state(), batch)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(results)}
  assert dtypes == {'float32', 'int32'}


def test_groups_on_one_device_need_only_the_all_reduce_of_gradients():
  """And a micro-batch moves nothing else and costs its share."""
  moving = r' (?:all-gather|all-to-all|collective-permute|reduce-scatter)\w*\('
  parts = resolve(model__bn_group_size=2, accumulation_steps=2)
  programs = {
    'groups': compile_step(resolve()),
    'whole': compile_step(resolve(model__bn_group_size=None)),
    'parts': compile_step(parts),
  }
  counts = {}
  for name, program in programs.items():
    hlo = program.as_text()
    assert not re.findall(moving, hlo), name
    counts[name] = len(re.findall(r' all-reduce(?:-start)?\(', hlo))
  assert 1 <= counts['groups'] <= 4
  # Statistics forward and backward: so the count above can fail.
  assert counts['whole'] >= 2 * NUM_NORMS
  flops = {
    name: program.cost_analysis()['flops'] for name, program in programs.items()
  }
  assert 0.9 < flops['parts'] / flops['groups'] < 1.2


def test_micro_batches_are_unrolled_on_cpus_with_the_memory_of_one():
  """A loop of XLA's convolutions is over ten times slower there."""
  programs = []
  for fields in ({'batch_size': 32}, {'accumulation_steps': 2}):
    config = fake_config(model__bn_group_size=2, **fields)
    run = experiment.resolve(config, devices=jax.devices()[:1])
    programs.append(compile_step(run))
  assert ' while(' not in programs[1].as_text()
  one, parts = (x.memory_analysis().temp_size_in_bytes for x in programs)
  assert parts <= 1.2 * one
  many = resolve(model__bn_group_size=1, batch_size=128, accumulation_steps=16)
  assert not many.task.unroll_micro_batches
