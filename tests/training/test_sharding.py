"""The mesh of data x fsdp: where a state lies, and that it changes nothing."""

import re

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from resnet.data.host.warnings import DataWarnings
from resnet.evaluation.evaluate import evaluate
from resnet.run.checkpoint import Checkpoints
from resnet.training.sharding import create_sharding
from resnet.training.step import jit_steps
from tests.runs import (
  assert_close,
  batch_of,
  compile_step,
  tiny,
  train_steps,
)


def resolve(fsdp, **changes):
  fields = {'model__bn_group_size': 8, 'log_every_steps': 1, **changes}
  return tiny(sharding__fsdp=fsdp, **fields)


def bytes_per_device(tree):
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ('shape', 'spec'),
  [
    ((3, 3, 64, 128), (None, None, None, 'fsdp')),
    ((1, 1, 2048, 512), (None, None, 'fsdp')),
    ((1, 1, 64, 64), (None, None, None, 'fsdp')),  # The last of equal dims.
    ((64, 10), ('fsdp',)),  # 8 does not divide 10.
    ((7, 7, 3, 10), ()),
    ((512,), ()),
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
    # Of 0.5 at first: to clip by a device's part of the norm would show.
    (8, {'optimizer__clip_norm': 0.3}),
    (
      2,
      {
        'accumulation_steps': 2,
        'model__bn_group_size': 4,
        'optimizer__clip_adaptive': 0.005,
      },
    ),
    (
      4,
      {
        'ema_decay': 0.9,
        'model__bn_group_size': None,
        'optimizer__name': 'lars',
        'optimizer__decay_rule': 'kernels',
      },
    ),
  ],
)
def test_fsdp_gives_the_losses_and_weights_of_a_replicated_state(fsdp, changes):
  changes = {'schedule__learning_rate': 0.4, **changes}
  state, losses = train_steps(resolve(1, **changes), 6)
  assert losses[-1] != pytest.approx(losses[0], rel=1e-3)
  run = resolve(fsdp, **changes)
  split, same = train_steps(run, 6)
  np.testing.assert_allclose(losses, same, rtol=1e-6)
  assert_close(state, split, rtol=1e-4, atol=1e-5)
  # The new state lies as the first one.
  for x, y in zip(
    jax.tree.leaves(split), jax.tree.leaves(run.abstract_state()), strict=True
  ):
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim), x.shape
  assert split.params['stage1_block1']['conv2']['kernel'].sharding.spec == (
    PartitionSpec(None, None, None, 'fsdp')
  )


def test_each_device_holds_only_its_part_of_the_state():
  """And kernels are gathered for a step; activations stay where they are."""
  run = resolve(8, ema_decay=0.9)
  state = run.create_state()
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  # Scales, biases and statistics are on each device.
  assert whole / 8 < bytes_per_device(state) < whole / 5
  program = compile_step(run)
  analysis = program.memory_analysis()
  assert analysis.argument_size_in_bytes == pytest.approx(
    bytes_per_device((state, batch_of(run))), rel=0.01
  )
  # All of the state is donated.
  assert analysis.alias_size_in_bytes == pytest.approx(
    bytes_per_device(state), rel=0.01
  )
  shapes = re.findall(
    r'= \(?\w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)', program.as_text()
  )
  kernels = {
    ','.join(map(str, leaf.shape))
    for leaf in jax.tree.leaves(run.abstract_state().params)
  }
  assert shapes
  assert set(shapes) <= kernels


def test_a_state_is_restored_with_another_fsdp_size(tmp_path):
  first = resolve(8)
  state, _ = train_steps(first, 2)
  saved = jax.device_get(state)
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(state, None)
  checkpoints.finish(expected_step=2)
  _, losses = train_steps(first, 2, state)
  evaluations = []
  for fsdp in (1, 2):
    run = resolve(fsdp)
    restored = Checkpoints(str(tmp_path)).restore(2, run.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, saved, jax.device_get(restored))
    assert bytes_per_device(restored) == bytes_per_device(run.create_state())
    steps = jit_steps(run.task, run.sharding)
    evaluations.append(evaluate(run, steps, restored, DataWarnings()))
  assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-6)
  restored, again = train_steps(run, 2, restored)
  np.testing.assert_allclose(losses, again, rtol=1e-6)
  assert int(restored.step) == 4
