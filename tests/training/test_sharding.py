"""The mesh of data x fsdp: where a state lies, and that it changes nothing."""

import re

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training import evaluate
from resnet.training.checkpoint import Checkpoints
from resnet.training.sharding import create_sharding
from resnet.training.step import jit_steps

FSDP = (1, 2, 4, 8)


def resolve(fsdp, **changes):
  config = fake.get_config()
  config.model.bn_group_size = 8
  config.sharding.fsdp = fsdp
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return experiment.resolve(config)


def train(run, num_steps, state=None):
  """Returns the state, still on the devices, and the loss of each step."""
  steps = jit_steps(run.task, run.sharding)
  state, losses = state or run.create_state(), []
  first = int(state.step)
  for step in range(first, first + num_steps):
    batch = jax.device_put(run.train_reader(step), run.sharding.batch)
    state, metrics = steps.train(state, batch)
    losses.append(float(metrics['loss']) / float(metrics['num_examples']))
  assert steps.train._cache_size() == 1
  return state, losses


def compile_step(run):
  batch = jax.eval_shape(lambda: run.train_reader(0))
  steps = jit_steps(run.task, run.sharding)
  return steps.train.lower(run.abstract_state(), batch).compile()


def bytes_per_device(tree):
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('shape', 'spec'),
  [
    ((3, 3, 64, 128), (None, None, None, 'fsdp')),
    ((1, 1, 2048, 512), (None, None, 'fsdp')),
    ((1, 1, 64, 64), (None, None, None, 'fsdp')),  # Of equal dims the last.
    ((64, 10), ('fsdp',)),  # 8 does not divide 10.
    ((7, 7, 3, 10), ()),
    ((512,), ()),
    ((), ()),
  ],
)
def test_a_kernel_is_split_in_its_largest_dim_that_divides(shape, spec):
  sharding = create_sharding(fsdp=8)
  leaf = jax.ShapeDtypeStruct(shape, np.float32)
  assert sharding.of_state(leaf).spec == PartitionSpec(*spec)
  assert create_sharding().of_state(leaf).spec == PartitionSpec()


def test_devices_of_an_fsdp_group_are_neighbours_and_rows_stay_in_order():
  sharding = create_sharding(fsdp=4)
  assert dict(sharding.mesh.shape) == {'data': 2, 'fsdp': 4}
  ids = [[device.id for device in row] for row in sharding.mesh.devices]
  assert ids == [[0, 1, 2, 3], [4, 5, 6, 7]]
  rows = sharding.batch.devices_indices_map((64,))
  starts = {device.id: index[0].start or 0 for device, index in rows.items()}
  assert starts == {i: 8 * i for i in range(8)}
  assert sharding.process_rows(64) == (0, 64)


@pytest.mark.parametrize(
  ('fsdp', 'changes'),
  [
    (8, {}),
    (2, {'accumulation_steps': 2, 'model__bn_group_size': 4}),
    (4, {'ema_decay': 0.9, 'model__bn_group_size': None}),
    (8, {'optimizer__name': 'lars', 'optimizer__decay_rule': 'kernels'}),
    # Of 0.5 at first: to clip by a device's part of the norm would show.
    (8, {'optimizer__clip_norm': 0.3}),
    (4, {'optimizer__clip_adaptive': 0.005}),
  ],
)
def test_losses_and_weights_are_those_of_a_replicated_state(fsdp, changes):
  changes = {'log_every_steps': 1, 'schedule__learning_rate': 0.4, **changes}
  state, losses = train(resolve(1, **changes), 6)
  assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
  split, same = train(resolve(fsdp, **changes), 6)
  np.testing.assert_allclose(losses, same, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    jax.device_get(state),
    jax.device_get(split),
  )


def test_first_weights_do_not_depend_on_the_axis():
  states = [jax.device_get(resolve(fsdp).create_state()) for fsdp in (1, 8)]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_device_holds_and_is_given_less_as_the_axis_grows():
  of_state, arguments, donated = [], [], []
  for fsdp in FSDP:
    run = resolve(fsdp, ema_decay=0.9)
    of_state.append(bytes_per_device(run.create_state()))
    analysis = compile_step(run).memory_analysis()
    arguments.append(analysis.argument_size_in_bytes)
    donated.append(analysis.alias_size_in_bytes)
  batch = 64 // 8 * (16 * 16 * 3 + 4 + 1)
  # Scales, biases, statistics and the first kernel's three channels stay.
  assert arguments == pytest.approx([x + batch for x in of_state], rel=0.01)
  assert donated == pytest.approx(of_state, rel=0.01)
  for fsdp, size in zip(FSDP, of_state, strict=True):
    assert size == pytest.approx(of_state[0] / fsdp, rel=0.25)


def test_updated_state_lies_as_the_first_one():
  run = resolve(4, ema_decay=0.9)
  state, _ = train(run, 2)
  wanted = jax.tree.map(lambda x: x.sharding, run.abstract_state())
  jax.tree.map(
    lambda x, sharding: (
      x.sharding.is_equivalent_to(sharding, x.ndim) or pytest.fail(str(x.shape))
    ),
    state,
    wanted,
  )
  assert state.params['stage3_block1']['conv2']['kernel'].sharding.spec == (
    PartitionSpec(None, None, None, 'fsdp')
  )


def test_kernels_are_gathered_and_activations_stay():
  hlo = compile_step(resolve(8)).as_text()
  shapes = re.findall(r'= \(?\w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)', hlo)
  kernels = {
    ','.join(map(str, leaf.shape))
    for leaf in jax.tree.leaves(resolve(8).abstract_state().params)
  }
  assert shapes
  for shape in shapes:
    assert shape in kernels, shape


@pytest.mark.parametrize(('before', 'after'), [(4, 1), (1, 8), (8, 2)])
def test_a_checkpoint_goes_on_with_another_axis(before, after, tmp_path):
  # Lookahead, so that the optimizer's state has weights of its own.
  fields = {'log_every_steps': 1, 'optimizer__lookahead_steps': 3}
  first = resolve(before, **fields)
  state, _ = train(first, 2)
  saved = jax.device_get(state)
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(state, None)
  checkpoints.finish(expected_step=2)
  _, losses = train(first, 2, state)
  run = resolve(after, **fields)
  restored = Checkpoints(str(tmp_path)).restore(2, run.abstract_state())
  jax.tree.map(np.testing.assert_array_equal, saved, jax.device_get(restored))
  assert bytes_per_device(restored) == bytes_per_device(run.create_state())
  restored, again = train(run, 2, restored)
  np.testing.assert_allclose(losses, again, rtol=1e-6)
  assert int(restored.step) == 4


def test_evaluation_takes_a_split_state():
  values = []
  for fsdp in (1, 4):
    run = resolve(fsdp, ema_decay=0.9)
    steps = jit_steps(run.task, run.sharding)
    notes = evaluate.Notes(run.eval_reader.max_bad_images)
    values.append(evaluate.evaluate(run, steps, run.create_state(), notes))
  assert values[0] == pytest.approx(values[1], rel=1e-6)
  assert values[1]['eval/num_examples'] == 100
