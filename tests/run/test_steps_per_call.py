"""Runs with several updates in a call: the same losses, lines and errors."""

import dataclasses
import json
import math
import re
import signal

import jax
import jax.numpy as jnp
import pytest

from resnet.data.augment.crop import example_keys
from resnet.data.host.loader import DeviceLoader
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
from resnet.training.step import jit_steps
from tests import runs
from tests.runs import assert_close, assert_close_runs, read_metrics

CACHED = {'data__augment_on': 'device', 'data__cache': 'device'}
FIELDS = {
  **CACHED,
  # 8 pixels until step 6, then 12, cropped from 12.
  'data__size_schedule': ((0.0, 8), (0.75, 12)),
  'data__image_size': 12,
  'data__eval_resize': 12,
  'data__crop': 'random_resized',
  'augment__mixup_alpha': 0.2,
  'augment__mix_group_size': 4,
  'model__bn_group_size': 4,
  'ema_decay': 0.9,
  'log_every_steps': 4,
  'save_every_steps': 8,
  'preemption_grace_seconds': 600.0,
  # So low that rounding errors do not grow.
  'schedule__learning_rate': 0.001,
}


def resolve(num_devices=4, **changes):
  return runs.tiny(num_devices, **{**FIELDS, **changes})


def train(workdir, run=None, **changes):
  run = run or resolve(**changes)
  return run_lib.train(run, str(workdir), start_time=0.0)


def take_calls(monkeypatch, stop_at=None):
  """Returns a list that gets the number of updates in each call.

  SIGTERM arrives before the call that makes update `stop_at`.
  """
  counts, real = [], DeviceLoader.take

  def take(self, count):
    counts.append(count)
    if stop_at is not None and stop_at in range(sum(counts) + 1)[-count:]:
      signal.raise_signal(signal.SIGTERM)
    return real(self, count)

  monkeypatch.setattr(DeviceLoader, 'take', take)
  return counts


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """The workdir of a run with one update per call."""
  workdir = tmp_path_factory.mktemp('single')
  train(workdir)
  return workdir


def assert_same_lines(workdir, other):
  assert_close_runs(workdir, other, rtol=1e-6)
  for ours, theirs in zip(*map(read_metrics, (workdir, other)), strict=True):
    # The first step of a process has no rate.
    assert ours.keys() | set(runs.TIMES) == theirs.keys() | set(runs.TIMES)
    assert ours['step'] == theirs['step']
  assert_close(
    runs.final_state(workdir, resolve()),
    runs.final_state(other, resolve()),
    rtol=1e-5,
    atol=1e-7,
  )


def test_a_run_makes_the_same_updates_with_two_programs_per_size(
  single, tmp_path, monkeypatch
):
  counts = take_calls(monkeypatch)
  with runs.compilations() as compiled:
    train(tmp_path, steps_per_call=2)
  # Alone: the first updates of each size, and those just before a log line.
  assert counts == [1, 2, 1, 2, 1, 1, 2, 2, 2, 2]
  names = [name for _, name in compiled]
  assert names.count('jit(train_step)') == 2
  assert names.count('jit(train_steps)') == 2
  assert_same_lines(tmp_path, single)
  steps = [Checkpoints(str(x)).all_steps() for x in (tmp_path, single)]
  assert steps == [[6, 8, 16]] * 2


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param({'accumulation_steps': 2}, marks=pytest.mark.slow),
    pytest.param({'optimizer__sam_rho': 0.05}, marks=pytest.mark.slow),
    pytest.param({'sharding__fsdp': 2}, marks=pytest.mark.slow),
    {
      'accumulation_steps': 2,
      'optimizer__sam_rho': 0.05,
      'sharding__fsdp': 2,
    },
  ],
)
def test_micro_batches_sam_and_fsdp_make_the_same_updates(changes):
  run = resolve(num_devices=2, data__size_schedule=(), **changes)
  run = run.cached(DataWarnings(), lambda _: None)
  steps = jit_steps(run.task, run.sharding)
  states, losses = [], []
  for count in (1, 3):
    state, train = run.create_state(), None
    loader = run.load(run.train_reader, DataWarnings(), num_steps=6)
    for step in range(count, 7, count):
      batch = loader.take(count)
      train = train or steps.compile_call(state, batch, count)
      state, metrics = train(state, batch)
      if step % 3 == 0:
        losses.append(float(metrics['loss']))
    loader.close()
    states.append(state)
  assert losses[:2] == pytest.approx(losses[2:], rel=1e-6)
  assert_close(*states, rtol=1e-5, atol=1e-7)


def test_a_signal_is_obeyed_after_the_call_and_another_number_resumes(
  single, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    counts = take_calls(patch, stop_at=11)
    outcome = train(tmp_path, steps_per_call=3)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 11)
  assert counts == [1, 3, 1, 1, 1, 1, 3]
  counts = take_calls(monkeypatch)
  train(tmp_path, steps_per_call=2)
  assert counts == [1, 2, 2]
  assert_same_lines(tmp_path, single)


def test_bad_updates_of_a_call_are_skipped_recorded_and_counted(tmp_path):
  """Updates 5 and 6 are not finite, in a call of 5, 6 and 7."""
  run = resolve(data__size_schedule=(), steps_per_call=3)
  bad_keys = jnp.stack(
    [example_keys(run.task.seed, step, 64)[0] for step in (4, 5)]
  )

  def crop(images, keys):
    is_bad = jnp.any(bad_keys == keys[0])
    return jnp.where(is_bad, jnp.nan, images.astype(jnp.float32))

  task = dataclasses.replace(run.task, device_crop=crop)
  run = dataclasses.replace(run, task=task)
  train(tmp_path / 'many', run)
  config = {**run.config, 'steps_per_call': 1}
  train(tmp_path / 'single', dataclasses.replace(run, config=config))
  many, single = (
    (tmp_path / x / 'bad_steps.jsonl').read_text() for x in ('many', 'single')
  )
  assert many == single
  lines = [json.loads(line) for line in many.splitlines()]
  assert [(x['step'], x['in_row']) for x in lines] == [(5, 1), (6, 2)]
  assert_close_runs(tmp_path / 'many', tmp_path / 'single', rtol=1e-6)
  skipped = runs.series(tmp_path / 'many', 'skipped_steps')
  assert skipped == {8: 2, 12: 2, 16: 2}


def test_a_call_moves_no_image_and_reuses_the_memory_of_the_state():
  run = runs.tiny(4, **CACHED, model__bn_group_size=4)
  run = run.cached(DataWarnings(), lambda _: None)
  steps, state = jit_steps(run.task, run.sharding), run.abstract_state()
  loader = run.load(run.train_reader, DataWarnings(), num_steps=1)
  program = steps.compile_call(state, next(loader), 3)
  collectives = r' (all-\w+|collective-\w+|reduce-scatter)[-\w]*\('
  assert set(re.findall(collectives, program.as_text())) == {'all-reduce'}
  size = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(state))
  analysis = program.memory_analysis()
  assert analysis.alias_size_in_bytes == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'data__cache': None},
      'steps_per_call=3 needs images on the devices: type'
      ' --config.data.cache=device --config.data.augment_on=device',
    ),
    (
      {'save_every_steps': 2},
      'steps_per_call=3 is more than the 2 steps between log lines,'
      ' evaluations or saves: type --config.steps_per_call=2',
    ),
  ],
)
def test_calls_that_cannot_be_made_are_refused(changes, message):
  with pytest.raises(InputError) as error:
    runs.tiny(4, **{**CACHED, 'steps_per_call': 3, **changes})
  assert str(error.value) == message
