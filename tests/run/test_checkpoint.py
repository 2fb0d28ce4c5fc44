"""Checkpoints: what is restored, where it lands, and what is refused."""

import contextlib
import errno
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet.errors import InputError, RunError
from resnet.run.checkpoint import Checkpoints, DamagedError, SaveError
from resnet.run.workdir import check_can_save
from tests.programs import wait_until
from tests.runs import tiny

FULL_DISK = OSError(errno.ENOSPC, 'No space left on device')


@pytest.fixture(scope='module')
def run():
  return tiny()


@pytest.fixture(scope='module')
def state(run):
  return run.create_state()


@pytest.fixture
def workdir(tmp_path):
  return str(tmp_path / 'run')


def save(workdir, state, metrics=None):
  """Returns the checkpoints of a folder with this one."""
  checkpoints = Checkpoints(workdir, keep=1)
  checkpoints.save(state, metrics)
  checkpoints.finish(expected_step=int(state.step))
  return checkpoints


def assert_equal(state, other):
  jax.tree.map(np.testing.assert_array_equal, state, other)


def test_a_state_is_restored_with_its_metrics_on_other_devices(state, workdir):
  checkpoints = Checkpoints(workdir, keep=2)
  assert checkpoints.latest_step() is None
  assert checkpoints.best_step() is None
  save(workdir, state, {'eval/top1': 0.25})
  checkpoints = Checkpoints(workdir)
  restored = checkpoints.restore(0, tiny(2).abstract_state())
  assert_equal(state, restored)
  assert restored.params['head']['bias'].sharding.mesh.size == 2
  assert checkpoints.best_step() == 0
  assert checkpoints.metrics(0) == {'eval/top1': 0.25}
  with pytest.raises(
    InputError, match=r'head/bias is float32\[10\] there, float32\[11\] here'
  ):
    checkpoints.restore(0, tiny(model__num_classes=11).abstract_state())


def test_a_flipped_bit_is_detected_on_restore(run, state, workdir, monkeypatch):
  save(workdir, state)
  real = ocp.StandardCheckpointHandler.restore

  def flip(self, *args, **options):
    tree = real(self, *args, **options)
    kernel = tree['params']['head']['kernel']
    words = np.array(kernel)
    words.view(np.uint32)[1, 2] ^= 1
    tree['params']['head']['kernel'] = jax.device_put(words, kernel.sharding)
    return tree

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', flip)
  with pytest.raises(DamagedError, match='checksum does not fit'):
    Checkpoints(workdir).restore(0, run.abstract_state())


def test_a_state_that_is_not_finite_is_not_saved(state, workdir):
  checkpoints = save(workdir, state)
  bias = state.params['head']['bias'].at[3].set(np.nan)
  head = {**state.params['head'], 'bias': bias}
  bad = state.replace(
    step=state.step + 1, params={**state.params, 'head': head}
  )
  with pytest.raises(
    RunError, match='step 1 holds numbers that are not finite'
  ):
    checkpoints.save(bad, None)
  checkpoints.finish(expected_step=0)
  with pytest.raises(SaveError, match='of step 0, not of step 1'):
    checkpoints.finish(expected_step=1)


def test_a_failed_save_is_reported_without_waiting_for_the_next(
  state, tmp_path
):
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  (tmp_path / 'checkpoints').rmdir()
  (tmp_path / 'checkpoints').write_text('in the way')
  # The save fails at once, or in the background and `check` raises.
  with pytest.raises(SaveError, match=r'exists|directory'):  # noqa: PT012
    checkpoints.save(state, None)
    wait_until(checkpoints.check)


def test_closing_after_a_failed_save_does_not_hide_its_error(
  workdir, monkeypatch
):
  """As on a full disk, where Orbax raises once more."""

  close = ocp.CheckpointManager.close

  def fail(self):
    close(self)
    raise ValueError('RESOURCE_EXHAUSTED: no space left')

  monkeypatch.setattr(ocp.CheckpointManager, 'close', fail)
  checkpoints = Checkpoints(workdir, keep=1)
  with (
    pytest.raises(RunError, match='the first error'),
    contextlib.closing(checkpoints),
  ):
    raise RunError('the first error')
  with pytest.raises(SaveError, match='RESOURCE_EXHAUSTED'):
    checkpoints.close()


def test_an_error_of_the_machine_is_not_reported_as_damage(
  run, state, workdir, monkeypatch
):
  """A checkpoint that cannot be read now stays where it is."""
  save(workdir, state, {'eval/top1': 0.5}).close()

  def fail(*_, **__):
    raise OSError(errno.EMFILE, 'Too many open files')

  for owner, name in (
    (pathlib.Path, 'read_text'),
    (ocp.StandardCheckpointHandler, 'restore'),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(owner, name, fail)
      with pytest.raises(RunError, match=r'cannot be read now: .*Too many'):
        Checkpoints(workdir, keep=1).restore_newest(run.abstract_state())
    assert not pathlib.Path(workdir, 'damaged_checkpoints').exists()
    assert Checkpoints(workdir).all_steps() == [0]


@pytest.mark.parametrize('error', [FULL_DISK, KeyboardInterrupt()])
def test_metrics_are_added_whole_or_not_at_all(
  run, state, workdir, monkeypatch, error
):
  checkpoints = save(workdir, state)

  def fail(*_):
    raise error

  metrics = {'eval/top1': 0.5}
  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', fail)
    with pytest.raises((SaveError, KeyboardInterrupt)):
      checkpoints.add_metrics(0, metrics)
  for expected in (None, metrics):
    checkpoints = Checkpoints(workdir, keep=1)
    assert_equal(state, checkpoints.restore_newest(run.abstract_state()))
    assert checkpoints.metrics(0) == expected
    if expected is None:
      checkpoints.add_metrics(0, metrics)
      assert checkpoints.best_step() == 0


def test_changed_metrics_are_detected(state, workdir, capsys):
  save(workdir, state, {'eval/top1': 0.25}).close()
  (path,) = pathlib.Path(workdir).rglob('metrics/metrics')
  text = path.read_text()
  for old, new in (('0.25', '0.75'), ('eval/top1', 'eval/tpp1'), ('}', '')):
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DamagedError, match=r'step 0 .*is damaged'):
      Checkpoints(workdir)
  Checkpoints(workdir, keep=1).close()
  assert pathlib.Path(workdir, 'damaged_checkpoints', '0').is_dir()
  assert capsys.readouterr().out.count('warning: ') == 1


def test_a_save_without_its_index_fails(state, tmp_path):
  """Orbax treats the path as a pattern and merges nothing."""
  checkpoints = Checkpoints(str(tmp_path / 'run[1]'), keep=1)
  checkpoints.save(state, None)
  with pytest.raises(SaveError, match=r'cannot be restored.*manifest\.ocdbt'):
    checkpoints.finish(expected_step=int(state.step))
  with pytest.raises(InputError, match=r'run\[1\].*\[ or \]'):
    check_can_save('run[1]')
