"""Runs whose images grow: one program a size, and results as of one run."""

import signal
import threading
from unittest import mock

import numpy as np
import pytest

from resnet.run import bad_steps, loop, programs
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.programs import Programs
from resnet.training.sharding import DataSharding
from tests import runs
from tests.runs import at_batch, read_metrics

NUM_STEPS = 16
FIELDS = {
  # 8 pixels until step 6, 12 until step 12, then 16.
  'data__size_schedule': ((0.0, 8), (0.75, 12), (1.5, 16)),
  'model__bn_group_size': 8,
  'log_every_steps': 1,
  'save_every_steps': 3,
  'data__image_size': 16,
  'data__eval_resize': 16,
}
ON_DEVICE = {'data__augment_on': 'device', 'data__crop': 'random_resized'}
THREAD = 'compile later sizes'


def resolve(num_devices=8, **changes):
  return runs.tiny(num_devices, **{**FIELDS, **changes})


def train(workdir, num_devices=8, **changes):
  run = resolve(num_devices, **changes)
  try:
    return run_lib.train(run, str(workdir), start_time=0.0)
  finally:
    # The next run would read programs that are being written.
    for thread in threading.enumerate():
      if thread.name == THREAD:
        thread.join()


def assert_same_run(workdir, other):
  runs.assert_same_run(workdir, other, resolve())


def losses(workdir):
  lines = read_metrics(workdir)
  return [line['train/loss'] for line in lines if 'train/loss' in line]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Folder of an uninterrupted run, cropped on the device; what it compiled."""
  workdir = tmp_path_factory.mktemp('whole')
  with runs.compilations() as compiled:
    outcome = train(workdir, **ON_DEVICE)
  assert outcome.step == NUM_STEPS
  return workdir, compiled


def test_each_size_is_compiled_once_and_only_the_first_by_the_loop(whole):
  workdir, compiled = whole
  assert len(losses(workdir)) == NUM_STEPS
  main = threading.current_thread().name
  assert sorted(x for x in compiled if 'step' in x[1]) == sorted(
    [
      (main, 'jit(train_step)'),
      (main, 'jit(eval_step)'),
      (THREAD, 'jit(train_step)'),
      (THREAD, 'jit(train_step)'),
    ]
  )


@pytest.mark.slow
def test_one_device_gives_the_losses_of_eight(whole, tmp_path):
  train(tmp_path, 1, **ON_DEVICE)
  np.testing.assert_allclose(losses(tmp_path), losses(whole[0]), rtol=1e-5)


@pytest.mark.slow
def test_replaying_and_resuming_cross_a_change_of_size(
  whole, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    at_batch(patch, 5)
    outcome = train(tmp_path, **ON_DEVICE)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 5)
  capsys.readouterr()
  assert bad_steps.replay(resolve(**ON_DEVICE), str(tmp_path), 8) == 0
  out = capsys.readouterr().out
  assert 'Step 8, from the checkpoint of step 5.' in out
  assert '0 of 64 losses are not finite' in out
  train(tmp_path, **ON_DEVICE)
  assert_same_run(tmp_path, whole[0])


@pytest.mark.slow
def test_images_cropped_on_the_host_grow_as_well(tmp_path):
  train(tmp_path)
  assert len(losses(tmp_path)) == NUM_STEPS


@pytest.fixture
def held(monkeypatch):
  """Later sizes are not compiled before this event."""
  event, real = threading.Event(), programs.abstract_batch

  def held_back(*args):
    event.wait()
    return real(*args)

  monkeypatch.setattr(programs, 'abstract_batch', held_back)
  yield event
  event.set()


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_the_compiler_after_saving(
  whole, held, tmp_path, monkeypatch
):
  real, watchdog = Programs.wait, mock.MagicMock()

  def wait(self, step, stop):
    # Compiling may take any time.
    assert watchdog.method_calls[-1] == mock.call.watch(None)
    signal.raise_signal(signal.SIGTERM)
    try:
      return real(self, step, stop)
    finally:
      held.set()

  fields = {'save_every_steps': 100, **ON_DEVICE}
  with monkeypatch.context() as patch:
    patch.setattr(loop, 'Watchdog', lambda *_, **__: watchdog)
    patch.setattr(Programs, 'wait', wait)
    outcome = train(tmp_path, **fields)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 6)
  assert Checkpoints(str(tmp_path)).latest_step() == 6
  train(tmp_path, **fields)
  assert_same_run(tmp_path, whole[0])


def test_an_error_of_compiling_a_later_size_ends_the_run(tmp_path, monkeypatch):
  def refuse(*_):
    raise ValueError('no memory for this')

  monkeypatch.setattr(programs, 'abstract_batch', refuse)
  with pytest.raises(ValueError, match='no memory for this'):
    train(tmp_path, **ON_DEVICE)
  # Before the size was due, or when the loop had to wait for it.
  assert len(losses(tmp_path)) <= 6


def test_on_a_gpu_later_sizes_are_compiled_before_training_continues(
  monkeypatch,
):
  monkeypatch.setattr(DataSharding, 'backend', 'gpu')
  subject = Programs(resolve(), first_step=0)
  assert not subject.is_ready(6)
  subject.compile_later_sizes()
  assert subject.is_ready(6)
  assert subject.is_ready(12)
