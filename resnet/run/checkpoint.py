"""Checkpoints of a run: Orbax, asynchronous, the latest few and the best.

With each state lies a checksum of its arrays, worked out on the devices before
they are saved and again after they are restored: Orbax itself does not notice a
flipped byte, nor a missing file of zeros.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from typing import Any
import zlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet.errors import InputError, RunError
from resnet.training import guards
from resnet.training.state import TrainState
from resnet.weights import score

FOLDER = 'checkpoints'
# Beside it, so that Orbax does not see it.
DAMAGED_FOLDER = 'damaged_checkpoints'
# The checksum among the metrics of a checkpoint.
_CRC = 'crc32'
# The folder of the state in a checkpoint, and the index that Orbax writes last.
_STATE_FOLDER = 'default'
_INDEX_FILE = 'manifest.ocdbt'


class SaveError(RunError):
  """A checkpoint could not be written."""


class DamagedError(InputError):
  """A checkpoint cannot be read, or is not what was saved."""


class Checkpoints:
  """The folder `workdir/checkpoints`, one subfolder a step.

  A failed save surfaces at the next `save`, at `finish`, and at the first
  `check` after it ended.
  """

  def __init__(
    self,
    workdir: str,
    *,
    keep: int | None = None,
    say: Callable[[str], None] = print,
  ):
    """Opens the folder.

    Args:
      workdir: of the run.
      keep: how many of the latest checkpoints to keep, besides the best by
        `weights.score`; None opens an existing folder to read only.
      say: is told of checkpoints whose metrics are damaged: they are moved to
        `workdir/damaged_checkpoints`.

    Raises:
      DamagedError: there are such, and the folder is to be read only.
    """
    self._workdir = os.path.abspath(workdir)
    self._keep = keep
    if keep is not None:
      self._put_back()
    self._check_metrics(say)
    self._manager = self._open()
    # The step whose save may still be in progress, or has not been checked.
    self._unchecked_step: int | None = None

  @property
  def _folder(self) -> str:
    return os.path.join(self._workdir, FOLDER)

  def _open(self) -> ocp.CheckpointManager:
    if self._keep is None:
      options = ocp.CheckpointManagerOptions(
        best_fn=score, read_only=True, create=False
      )
    else:
      options = ocp.CheckpointManagerOptions(
        best_fn=score,
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [
            preservation_policy.LatestN(self._keep),
            preservation_policy.BestN(
              n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        cleanup_tmp_directories=True,
      )
    return ocp.CheckpointManager(
      self._folder,
      options=options,
      item_handlers=ocp.StandardCheckpointHandler(),
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """Returns the steps of all checkpoints, the oldest first."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Returns the step of the highest `score`, None without evaluation."""
    step = self._manager.best_step()
    return None if step is None or self.metrics(step) is None else step

  def metrics(self, step: int) -> dict[str, Any] | None:
    """Returns the evaluation saved with a step, None if there was none."""
    try:
      metrics = self._manager.metrics(step)
      return metrics and {k: v for k, v in metrics.items() if k != _CRC}
    except Exception as error:  # Whatever damaged files make Orbax raise.
      raise self._damaged(step, error) from error

  def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Begins to save; the state may be donated as soon as this returns.

    Args:
      state: to save, under its own step.
      metrics: of the evaluation at this step, if there was one.

    Raises:
      RunError: a number is not finite; nothing is written.
      SaveError: it could not be written, or the one before.
    """
    checksum, is_finite = _inspect(state)
    step = int(state.step)
    if not is_finite:
      raise RunError(
        f'The state after step {step} holds numbers that are not finite: it is'
        ' not saved, the last good checkpoint stays.'
      )
    with self._as_save_error():
      # Waits for the save before, which is checked then.
      self._manager.wait_until_finished()
    self._check_index()
    with self._as_save_error():
      self._manager.save(
        step,
        args=ocp.args.StandardSave(_saved_tree(state, checksum)),
        metrics=metrics and {**metrics, _CRC: _crc(metrics)},
      )
    self._unchecked_step = step

  def compile(self, state: TrainState) -> None:
    """Compiles what `save` works out, which may take its time."""
    jax.block_until_ready(_inspect(state))

  def save_now(
    self,
    state: TrainState,
    metrics: dict[str, float] | None,
    error: SaveError,
    say: Callable[[str], None],
  ) -> None:
    """Tries again after `error`, a second time, and waits for the end.

    Raises:
      SaveError: it failed again; the checkpoints before are as they were.
    """
    say(f'warning: {error} Trying again.')
    # The thread of the failed save would tell its error once more.
    try:
      with self._as_save_error():
        self._manager = self._open()
      step = int(state.step)
      if self.latest_step() == step and not os.path.exists(self._index(step)):
        self._set_aside([step])
        self._manager.reload()
      if self.latest_step() != step:
        self.save(state, metrics)
      self.finish(expected_step=step)
    except SaveError as again:
      raise SaveError(
        f'{again} The newest checkpoint is of step {self.latest_step()}.'
        ' Mend that, and the same command goes on from there.'
      ) from again

  @contextlib.contextmanager
  def _as_save_error(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Whatever Orbax's threads ran into.
      self._unchecked_step = None  # It is known to have failed.
      text = str(error).strip().splitlines()
      raise SaveError(
        f'A checkpoint could not be written to {self._folder}:'
        f' {text[-1][:1000] if text else repr(error)}.'
      ) from error

  def replace(
    self,
    state: TrainState,
    metrics: dict[str, float],
    say: Callable[[str], None],
  ) -> None:
    """Saves a state anew, with the metrics that its checkpoint does not have.

    The one that is there stays beside the folder until the new one is on disk.
    A single process tries twice, and `say` tells.

    Raises:
      SaveError: it could not be written; the old one is put back, at the latest
        at the start of the next run.
    """
    step = int(state.step)
    if jax.process_index() == 0:
      os.rename(os.path.join(self._folder, str(step)), self._old(step))
    multihost_utils.sync_global_devices('the old checkpoint is aside')
    self._manager.reload()
    try:
      self.save(state, metrics)
      self.finish(expected_step=step)
    except SaveError as error:
      if jax.process_count() > 1:
        raise
      try:
        self.save_now(state, metrics, error, say)
      except SaveError:
        self._put_back()
        raise
    if jax.process_index() == 0:
      shutil.rmtree(self._old(step))

  def _old(self, step: int | str) -> str:
    return os.path.join(self._workdir, f'.replaced_{step}')

  @staticmethod
  def is_half_replaced(workdir: str) -> bool:
    """Whether a kill within `replace` has left something to put right."""
    return any(pathlib.Path(workdir).glob('.replaced_*'))

  def _put_back(self) -> None:
    """Makes good what a kill within `replace` has left."""
    if jax.process_index() == 0:
      for path in pathlib.Path(self._workdir).glob('.replaced_*'):
        new = pathlib.Path(self._folder) / path.name.removeprefix('.replaced_')
        if new.exists():
          shutil.rmtree(path)
        else:
          new.parent.mkdir(exist_ok=True)
          os.rename(path, new)
    multihost_utils.sync_global_devices('old checkpoints are put back')

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Returns the state at `step`, placed as `target` (abstract) says.

    All processes return, or all raise.

    Raises:
      DamagedError: it cannot be read, or is not what was saved.
      InputError: what is stored has not the tree, shapes and dtypes of
        `target`; nothing was read then.
    """
    damage, restored = None, {}
    try:
      restored = self._read(step, target)
    except DamagedError as error:
      damage = error
    # The checksum is worked out by all processes together.
    is_read = multihost_utils.process_allgather(np.int32(damage is None))
    if not np.all(is_read):
      raise damage or self._damaged(step, 'another process cannot read it')
    checksum = restored.pop('checksum')
    state = TrainState(**{'ema': None, **restored})
    if _inspect(state)[0] != checksum:
      raise self._damaged(step, 'its checksum does not fit')
    return state

  def _read(self, step: int, target: TrainState) -> dict[str, Any]:
    # Orbax would cast dtypes silently, and fail only after it began to read.
    try:
      stored = _describe(self._manager.item_metadata(step))
    except Exception as error:
      raise self._damaged(step, error) from error
    if not stored:
      raise self._damaged(step, 'its metadata are missing')
    checksum = jax.ShapeDtypeStruct((), 'uint32', sharding=target.step.sharding)
    target_tree = _saved_tree(target, checksum)
    wanted = _describe(target_tree)
    for path in sorted(stored.keys() | wanted.keys()):
      if stored.get(path) != wanted.get(path):
        raise InputError(
          f'The checkpoint of step {step} in {self._folder} does not'
          f' fit this config: {path} is {stored.get(path, "missing")} there,'
          f' {wanted.get(path, "missing")} here.'
        )
    try:
      # Not by the manager: it waits for all processes, and one that cannot read
      # its part does not come.
      restored: Any = ocp.StandardCheckpointHandler().restore(
        epath.Path(self._folder, str(step), _STATE_FOLDER),
        args=ocp.args.StandardRestore(target_tree),
      )
    except Exception as error:
      raise self._damaged(step, error) from error
    return restored

  def restore_newest(
    self, target: TrainState, say: Callable[[str], None]
  ) -> TrainState | None:
    """Restores the newest checkpoint that is whole; None: there is none.

    Damaged ones are moved to `workdir/damaged_checkpoints`, and `say` tells.

    Raises:
      InputError: there were checkpoints, but all of them are damaged; or as
        `restore`.
    """
    for step in reversed(self.all_steps()):
      try:
        return self.restore(step, target)
      except DamagedError as error:  # For all processes.
        say(f'warning: {error}')
      self._set_aside([step])
      self._manager.reload()
    damaged = os.path.join(self._workdir, DAMAGED_FOLDER)
    if os.path.isdir(damaged):
      raise InputError(
        f'{self._workdir} has no whole checkpoint left; the damaged ones are in'
        f' {damaged}. Put a good one into {self._folder}, or begin'
        ' anew with another --workdir.'
      )
    return None

  def _check_metrics(self, say: Callable[[str], None]) -> None:
    """Sets aside what Orbax would fail at when it opens the folder."""
    damaged = []
    for path in sorted(pathlib.Path(self._folder).glob('*/metrics/metrics')):
      step = path.parts[-3]
      try:
        _check_crc(json.loads(path.read_text()))
      except (OSError, ValueError) as error:
        if step.isdigit():
          damaged.append(int(step))
          message = self._damaged(int(step), error)
          if self._keep is None:
            raise message from None
          say(f'warning: {message}')
    multihost_utils.sync_global_devices('metrics are read')
    self._set_aside(damaged)

  def _set_aside(self, steps: Sequence[int]) -> None:
    """Moves damaged checkpoints out of Orbax's sight."""
    folder = os.path.join(self._workdir, DAMAGED_FOLDER)
    for step in steps if jax.process_index() == 0 else ():
      os.makedirs(folder, exist_ok=True)
      names = (str(step), *(f'{step}_{i}' for i in range(1, 1000)))
      free = next(
        name for name in names if not os.path.lexists(f'{folder}/{name}')
      )
      os.rename(os.path.join(self._folder, str(step)), f'{folder}/{free}')
    multihost_utils.sync_global_devices('damaged checkpoints are set aside')

  def _damaged(self, step: int, reason: object) -> DamagedError:
    """Returns the error of a damaged checkpoint.

    Raises:
      RunError: instead, where the machine is to blame: the files may be good.
    """
    if _is_of_machine(reason):
      raise RunError(
        f'The checkpoint of step {step} in {self._folder} cannot be read now:'
        f' {reason}. It stays where it is; the same command tries again.'
      )
    text = str(reason).splitlines()[0] if str(reason) else repr(reason)
    return DamagedError(
      f'The checkpoint of step {step} in {self._folder} is damaged'
      f' ({text[:200]}).'
    )

  def check(self) -> None:
    """Raises SaveError if a save that has ended went wrong; does not wait."""
    is_done = not self._manager.is_saving_in_progress()
    with self._as_save_error():
      if is_done:
        # Orbax raises the error of its last thread only in those who wait.
        self._manager.wait_until_finished()
      self._manager.check_for_errors()
    if is_done:
      self._check_index()

  def _check_index(self) -> None:
    """Raises SaveError if the last save, which has ended, left no index.

    Without it nothing can be restored, whatever else was written. Process 0
    writes it, so the others need not see it yet.
    """
    step, self._unchecked_step = self._unchecked_step, None
    if step is None or jax.process_index() > 0:
      return
    if not os.path.exists(self._index(step)):
      raise SaveError(
        f'The checkpoint of step {step} cannot be restored: the save ended'
        f' without an error, but there is no {self._index(step)}.'
      )

  def _index(self, step: int) -> str:
    return os.path.join(self._folder, str(step), _STATE_FOLDER, _INDEX_FILE)

  def finish(self, expected_step: int) -> None:
    """Waits until all is written.

    Raises:
      SaveError: a save failed, or the newest checkpoint is not that of
        `expected_step`.
    """
    with self._as_save_error():
      self._manager.wait_until_finished()
    self._check_index()
    if self.latest_step() != expected_step:
      raise SaveError(
        f'The newest checkpoint is of step {self.latest_step()}, not'
        f' {expected_step}.'
      )

  def close(self) -> None:
    """Waits for what is being written and lets go of the folder."""
    self._manager.close()


_OF_MACHINE = (
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.ESTALE),
)


def _is_of_machine(reason: Any) -> bool:
  """Whether an error tells nothing of the content of files."""
  while isinstance(reason, BaseException):
    if isinstance(reason, MemoryError) or 'RESOURCE_EXHAUSTED' in str(reason):
      return True
    if getattr(reason, 'errno', None) in _OF_MACHINE:
      return True
    reason = reason.__cause__ or reason.__context__
  return False


def _crc(metrics: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(metrics, sort_keys=True).encode())


def _check_crc(saved: Any) -> None:
  """Raises a ValueError for metrics that are not what was saved."""
  if not isinstance(saved, dict) or not isinstance(
    saved.get('eval/top1'), float
  ):
    raise ValueError('its metrics have no eval/top1')
  # Checkpoints from before there was a checksum go on without.
  if _crc({k: v for k, v in saved.items() if k != _CRC}) != saved.get(
    _CRC, _crc(saved)
  ):
    raise ValueError('the checksum of its metrics does not fit')


@jax.jit
def _inspect(state: TrainState) -> tuple[jax.Array, jax.Array]:
  """Returns the checksum of a state, and whether all of it is finite."""
  return guards.checksum(state), guards.all_finite(state)


def _saved_tree(state: TrainState, checksum: Any) -> dict[str, Any]:
  """What lies on disk: the fields of the state, and its checksum."""
  tree = {
    field.name: getattr(state, field.name)
    for field in dataclasses.fields(state)
  }
  if tree['ema'] is None:
    del tree['ema']
  return {**tree, 'checksum': checksum}


def _describe(tree: Any) -> dict[str, str]:
  """Returns dtype and shape by path, such as 'params/head/bias'."""
  return {
    '/'.join(
      str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key))))
      for key in path
    ): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
