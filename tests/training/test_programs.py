"""Runs whose images grow: one program a size, and the same run after all."""

import dataclasses
import os
import signal
import threading
import time
import types

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training import loop, programs, replay
from resnet.training import run as run_lib
from resnet.training.checkpoint import Checkpoints
from resnet.training.programs import Programs
from tests.training.test_loop import at_batch, untimed

NUM_STEPS = 16
# 8 pixels until step 6, 12 until step 12, then 16.
SCHEDULE = ((0.0, 8), (0.75, 12), (1.5, 16))
DEVICE = {'data__augment_on': 'device', 'data__crop': 'random_resized'}
THREAD = 'compile later sizes'


def resolve(devices=None, **fields):
  config = fake.get_config()
  config.data.size_schedule = SCHEDULE
  config.model.bn_group_size = 8
  config.log_every_steps = 1
  config.save_every_steps = 3
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  run = experiment.resolve(config, devices=devices)
  # A block is enough, and soon compiled.
  model = run.task.model.clone(stage_sizes=(1,), num_filters=4)
  return dataclasses.replace(
    run, task=dataclasses.replace(run.task, model=model)
  )


def train(workdir, devices=None, **fields):
  run = resolve(devices, **fields)
  try:
    return run_lib.train(run, str(workdir), start_time=0.0)
  finally:
    # The next run would read programs that are being written.
    for thread in threading.enumerate():
      if thread.name == THREAD:
        thread.join()


def assert_same_run(workdir, other):
  assert untimed(workdir) == untimed(other)
  state = resolve().abstract_state()
  jax.tree.map(
    np.testing.assert_array_equal,
    *(
      jax.device_get(Checkpoints(str(path)).restore(NUM_STEPS, state))
      for path in (workdir, other)
    ),
  )


def losses(workdir):
  return [
    line['train/loss'] for line in untimed(workdir) if 'train/loss' in line
  ]


@pytest.fixture(scope='module')
def compiled():
  """(thread, function) of each program that was compiled in `whole`."""
  return []


@pytest.fixture(scope='module')
def whole(tmp_path_factory, compiled):
  """An uninterrupted run, cropped on the device."""
  workdir = tmp_path_factory.mktemp('whole')

  def listen(event, seconds, **fields):
    del seconds
    if event == '/jax/core/compile/backend_compile_duration':
      name = threading.current_thread().name
      compiled.append((name, fields.get('fun_name')))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    outcome = train(workdir, **DEVICE)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert outcome.step == NUM_STEPS
  return workdir


def test_each_size_is_compiled_once_and_the_loop_compiles_the_first(
  whole, compiled
):
  assert len(losses(whole)) == NUM_STEPS
  steps = [x for x in compiled if 'step' in str(x[1])]
  main = threading.current_thread().name
  assert sorted(steps) == sorted(
    [
      (main, 'jit(train_step)'),
      (main, 'jit(eval_step)'),
      (THREAD, 'jit(train_step)'),
      (THREAD, 'jit(train_step)'),
    ]
  )


def test_one_device_equals_eight(whole, tmp_path):
  train(tmp_path, jax.devices()[:1], **DEVICE)
  np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)


# The first batch of 12 pixels is number 7, from 1.
@pytest.mark.parametrize('number', [5, 6, 7])
def test_a_run_stopped_around_a_change_goes_on_bit_for_bit(
  whole, tmp_path, monkeypatch, number
):
  with monkeypatch.context() as patch:
    at_batch(patch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = train(tmp_path, **DEVICE)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, number)
  train(tmp_path, **DEVICE)
  assert_same_run(tmp_path, whole)


def test_a_crash_after_a_change_goes_on_bit_for_bit_on_the_host_road(
  tmp_path, monkeypatch
):
  def crash():
    raise RuntimeError('crash')

  train(tmp_path / 'whole')
  with monkeypatch.context() as patch:
    at_batch(patch, 9, crash)
    with pytest.raises(RuntimeError, match='crash'):
      train(tmp_path / 'run')
  assert Checkpoints(str(tmp_path / 'run')).latest_step() == 6
  train(tmp_path / 'run', data__num_workers=2)
  assert_same_run(tmp_path / 'run', tmp_path / 'whole')


@pytest.fixture
def held(monkeypatch):
  """The compiler of later sizes does not begin before this event."""
  event, real = threading.Event(), Programs._compile
  monkeypatch.setattr(
    Programs, '_compile', lambda self: event.wait() and real(self)
  )
  yield event
  event.set()


def test_the_loop_waits_for_the_compiler_and_the_watchdog_rests(
  whole, held, tmp_path, monkeypatch
):
  watchdogs, watched = [], []
  real_watchdog, real_wait = loop.Watchdog, Programs.wait

  def wait(self, step, stop):
    watched.append((step, watchdogs[0]._what))
    held.set()
    return real_wait(self, step, stop)

  monkeypatch.setattr(Programs, 'wait', wait)
  monkeypatch.setattr(
    loop,
    'Watchdog',
    lambda *args, **options: (
      watchdogs.append(real_watchdog(*args, **options)) or watchdogs[0]
    ),
  )
  train(tmp_path, **DEVICE)
  assert watched[0] == (6, None)
  assert_same_run(tmp_path, whole)


def test_a_signal_ends_the_wait_for_the_compiler_after_saving(
  whole, held, tmp_path, monkeypatch
):
  real = Programs.wait

  def wait(self, step, stop):
    os.kill(os.getpid(), signal.SIGTERM)
    try:
      return real(self, step, stop)
    finally:
      held.set()

  with monkeypatch.context() as patch:
    patch.setattr(Programs, 'wait', wait)
    outcome = train(tmp_path, save_every_steps=100, **DEVICE)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 6)
  assert Checkpoints(str(tmp_path)).latest_step() == 6
  train(tmp_path, save_every_steps=100, **DEVICE)
  assert_same_run(tmp_path, whole)


def test_what_the_compiler_says_of_a_later_size_ends_the_run(
  tmp_path, monkeypatch
):
  def refuse(*_):
    raise ValueError('no memory for this')

  monkeypatch.setattr(programs, 'abstract_batch', refuse)
  with pytest.raises(ValueError, match='no memory for this'):
    train(tmp_path, **DEVICE)
  # Before the size was due, or when the loop had to wait for it.
  assert len(losses(tmp_path)) <= 6


def test_on_a_gpu_training_waits_for_the_compiler(monkeypatch):
  compiled = []

  def compile_(self):
    del self
    time.sleep(0.1)
    compiled.append(threading.current_thread().name)

  monkeypatch.setattr(Programs, '_compile', compile_)
  subject = Programs(resolve(), first_step=0)
  device = types.SimpleNamespace(platform='gpu')
  mesh = types.SimpleNamespace(devices=np.array([device]))
  subject._experiment = types.SimpleNamespace(
    sharding=types.SimpleNamespace(mesh=mesh)
  )
  subject.compile_later_sizes()
  assert compiled == [THREAD]


def test_nothing_is_compiled_beside_a_run_of_one_size():
  before = threading.active_count()
  Programs(resolve(data__size_schedule=()), first_step=0).compile_later_sizes()
  # Nor where only the last size is left.
  Programs(resolve(), first_step=12).compile_later_sizes()
  assert threading.active_count() == before


def test_a_replay_goes_over_a_change(tmp_path, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    at_batch(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(tmp_path, **DEVICE)
  capsys.readouterr()
  assert replay.run(resolve(**DEVICE), str(tmp_path), 8) == 0
  out = capsys.readouterr().out
  assert 'Step 8, from the checkpoint of step 5.' in out
  assert '0 of 64 losses are not finite' in out
