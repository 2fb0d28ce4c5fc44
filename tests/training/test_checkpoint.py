"""Checkpoints: what is restored, where it lands, and what is refused."""

import dataclasses
import errno
import pathlib
import time

import jax
from jax.sharding import AxisType, Mesh
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import fake
from resnet import experiment
from resnet.errors import InputError, RunError
from resnet.training.checkpoint import Checkpoints, DamagedError, SaveError
from resnet.training.sharding import DataSharding


@pytest.fixture(scope='module')
def run():
  return experiment.resolve(fake.get_config())


def test_a_state_comes_back_on_other_devices(run, tmp_path):
  state = run.create_state()
  checkpoints = Checkpoints(str(tmp_path), keep=2)
  assert checkpoints.latest_step() is None
  assert checkpoints.best_step() is None
  checkpoints.save(state, None)
  checkpoints.finish(expected_step=0)
  mesh = Mesh(
    np.array(jax.devices()[:2]), ('data',), axis_types=(AxisType.Auto,)
  )
  two = dataclasses.replace(run, sharding=DataSharding(mesh))
  restored = Checkpoints(str(tmp_path)).restore(0, two.abstract_state())
  jax.tree.map(np.testing.assert_array_equal, state, restored)
  assert restored.params['head']['bias'].sharding.mesh.size == 2


def test_another_network_is_refused(run, tmp_path):
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(run.create_state(), None)
  checkpoints.finish(expected_step=0)
  config = fake.get_config()
  config.model.num_classes = 11
  other = experiment.resolve(config).abstract_state()
  with pytest.raises(
    InputError, match=r'head/bias is float32\[10\] there, float32\[11\] here'
  ):
    Checkpoints(str(tmp_path)).restore(0, other)


def test_a_missing_last_checkpoint_is_an_error(run, tmp_path):
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(run.create_state(), None)
  with pytest.raises(SaveError, match='of step 0, not 5'):
    checkpoints.finish(expected_step=5)


def test_evaluations_are_kept_with_their_step(run, tmp_path):
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  checkpoints.save(run.create_state(), {'eval/top1': 0.25})
  checkpoints.finish(expected_step=0)
  again = Checkpoints(str(tmp_path))
  assert again.best_step() == 0
  assert again.metrics(0) == {'eval/top1': 0.25}


def test_a_failed_save_is_told_without_waiting_for_the_next(run, tmp_path):
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  (tmp_path / 'checkpoints').rmdir()
  (tmp_path / 'checkpoints').write_text('in the way')
  # The save fails at once, or in the background and is told by `check`.
  with pytest.raises(SaveError, match=r'exists|directory'):  # noqa: PT012
    checkpoints.save(run.create_state(), None)
    for _ in range(100):
      checkpoints.check()
      time.sleep(0.1)


@pytest.mark.parametrize('read', ['metrics', 'state'])
def test_an_error_of_the_machine_is_no_damage(run, tmp_path, monkeypatch, read):
  """A checkpoint that cannot be read now stays where it is."""
  workdir = tmp_path / 'run'
  state = run.create_state()
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, {'eval/top1': 0.5})
  checkpoints.finish(expected_step=int(state.step))
  checkpoints.close()

  def fail(*_, **__):
    raise OSError(errno.EMFILE, 'Too many open files')

  owner, name = {
    'metrics': (pathlib.Path, 'read_text'),
    'state': (ocp.StandardCheckpointHandler, 'restore'),
  }[read]
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, fail)
    with pytest.raises(RunError, match=r'cannot be read now: .*Too many'):
      Checkpoints(str(workdir), keep=1).restore_newest(
        run.abstract_state(), print
      )
  assert not (workdir / 'damaged_checkpoints').exists()
  assert Checkpoints(str(workdir)).all_steps() == [int(state.step)]


@pytest.mark.parametrize('num_failures', [1, 2])
def test_a_replacement_that_fails_leaves_the_old_checkpoint(
  run, tmp_path, monkeypatch, num_failures
):
  """A first failure is made good; after a second the old one is put back."""
  workdir = tmp_path / 'run'
  state = run.create_state()
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, None)
  checkpoints.finish(expected_step=0)
  calls, real, lines = [], ocp.CheckpointManager.save, []

  def fail(*args, **options):
    calls.append(None)
    if len(calls) <= num_failures:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return real(*args, **options)

  monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
  if num_failures == 1:
    checkpoints.replace(state, {'eval/top1': 0.5}, lines.append)
    assert checkpoints.metrics(0) == {'eval/top1': 0.5}
  else:
    with pytest.raises(SaveError, match='No space left'):
      checkpoints.replace(state, {'eval/top1': 0.5}, lines.append)
  (line,) = lines
  assert line.endswith('Trying again.')
  assert Checkpoints(str(workdir)).all_steps() == [0]
  assert not Checkpoints.is_half_replaced(str(workdir))


@pytest.mark.parametrize(
  ('old', 'new'), [('0.25', '0.75'), ('eval/top1', 'eval/tpp1'), ('}', '')]
)
def test_metrics_that_were_changed_are_noticed(run, tmp_path, old, new):
  workdir = tmp_path / 'run'
  state = run.create_state()
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, {'eval/top1': 0.25})
  checkpoints.finish(expected_step=0)
  checkpoints.close()
  (path,) = workdir.rglob('metrics/metrics')
  path.write_text(path.read_text().replace(old, new, 1))
  with pytest.raises(DamagedError, match=r'step 0 .*is damaged'):
    Checkpoints(str(workdir))
  lines = []
  Checkpoints(str(workdir), keep=1, say=lines.append).close()
  assert (workdir / 'damaged_checkpoints' / '0').is_dir()
  assert len(lines) == 1


def test_a_kill_while_a_checkpoint_is_replaced_loses_nothing(
  run, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  state = run.create_state()
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, None)
  checkpoints.finish(expected_step=0)

  def killed(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, 'save', killed)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.replace(state, {'eval/top1': 0.5}, print)
  checkpoints.close()
  checkpoints = Checkpoints(str(workdir), keep=1)
  restored = checkpoints.restore_newest(run.abstract_state(), print)
  jax.tree.map(np.testing.assert_array_equal, state, restored)
  checkpoints.replace(restored, {'eval/top1': 0.5}, print)
  assert checkpoints.metrics(0) == {'eval/top1': 0.5}
  checkpoints.close()
  assert not list(workdir.glob('.replaced_*'))
