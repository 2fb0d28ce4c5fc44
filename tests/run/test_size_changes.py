"""Runs whose images grow: one program a size, and results as of one run."""

import signal

import numpy as np
import pytest

from resnet.run import bad_steps, loop
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
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


def resolve(num_devices=8, **changes):
  return runs.tiny(num_devices, **{**FIELDS, **changes})


def train(workdir, num_devices=8, **changes):
  run = resolve(num_devices, **changes)
  return run_lib.train(run, str(workdir), start_time=0.0)


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


def test_each_size_is_compiled_once(whole):
  workdir, compiled = whole
  assert len(losses(workdir)) == NUM_STEPS
  programs = sorted(name for _, name in compiled if 'step' in name)
  assert programs == ['jit(eval_step)', *['jit(train_step)'] * 3]


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


def test_the_state_is_saved_before_another_size_is_compiled(
  tmp_path, monkeypatch
):
  sizes, saved, real = [], [], loop.jit_steps

  def jit_steps(task, sharding):
    sizes.append(task.device_crop.size)
    saved.append(Checkpoints(str(tmp_path)).latest_step())
    return real(task, sharding)

  monkeypatch.setattr(loop, 'jit_steps', jit_steps)
  train(tmp_path, **{**ON_DEVICE, 'save_every_steps': 100})
  assert (sizes, saved) == ([8, 12, 16], [None, 6, 12])


def test_a_signal_before_a_compilation_ends_the_run_saved(
  tmp_path, monkeypatch
):
  compiled, real = [], loop.jit_steps

  def jit_steps(task, sharding):
    compiled.append(task.device_crop.size)
    return real(task, sharding)

  monkeypatch.setattr(loop, 'jit_steps', jit_steps)
  at_batch(monkeypatch, 7)  # The first of 12 pixels.
  outcome = train(tmp_path, **{**ON_DEVICE, 'save_every_steps': 100})
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 6)
  assert Checkpoints(str(tmp_path)).latest_step() == 6
  assert compiled == [8]
