"""Saves and restores checkpoints with Orbax: the latest few and the best."""

from collections.abc import Iterator
import contextlib
import json
import os
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from resnet.checkpoint_folder import best_step, score
from resnet.errors import InputError, RunError
from resnet.files import write_atomically
from resnet.run import integrity
from resnet.run.integrity import STATE_FOLDER, DamagedError
from resnet.run.workdir import CHECKPOINTS as FOLDER
from resnet.training.state import TrainState

# Orbax writes the index of the state last.
_INDEX_FILE = 'manifest.ocdbt'


class SaveError(RunError):
  """A checkpoint could not be written."""


class Checkpoints:
  """The folder `workdir/checkpoints`, with a subfolder for each step.

  Saves are asynchronous: the error of a failed one is raised by the next
  `save` or `finish`, or by the first `check` after it has ended.
  """

  def __init__(self, workdir: str, *, keep: int | None = None):
    """Opens the folder; moves checkpoints with damaged metrics out of it.

    `keep` is the number of latest checkpoints to keep, besides the best by
    `score`. None opens the folder read-only; a damaged checkpoint is
    then an error.
    """
    self._workdir = os.path.abspath(workdir)
    self._folder = os.path.join(self._workdir, FOLDER)
    self._keep = keep
    damaged = integrity.find_damaged_metrics(self._folder)
    if damaged and keep is None:
      raise damaged[min(damaged)]
    multihost_utils.sync_global_devices('metrics are read')
    integrity.set_aside(self._folder, damaged)
    self._manager = self._open()
    # The step whose save may be in progress or has not been checked yet.
    self._unchecked_step: int | None = None

  def _open(self) -> ocp.CheckpointManager:
    options: dict[str, Any] = {'read_only': True, 'create': False}
    if self._keep is not None:
      best = policies.BestN(
        n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False
      )
      kept = policies.AnyPreservationPolicy(
        [policies.LatestN(self._keep), best]
      )
      options = {'preservation_policy': kept, 'cleanup_tmp_directories': True}
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(best_fn=score, **options),
      item_handlers=ocp.StandardCheckpointHandler(),
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """Returns the steps of all checkpoints, the oldest first."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Returns the step of the highest `score`, None if none was evaluated."""
    return best_step(self._manager, self.metrics)

  def metrics(self, step: int) -> dict[str, Any] | None:
    """Returns the evaluation saved with a step, None if there was none."""
    try:
      metrics = self._manager.metrics(step)
      return metrics and integrity.without_checksum(metrics)
    except Exception as error:  # Damaged files cause errors of many types.
      raise integrity.error_of(self._folder, step, error) from error

  def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Starts saving a state and, if there is one, the evaluation at its step.

    The state may be donated as soon as this returns.

    Raises:
      RunError: a number is not finite; nothing is written.
      SaveError: this save or the previous one failed.
    """
    checksum, is_finite = integrity.inspect(state)
    step = int(state.step)
    if not is_finite:
      raise RunError(
        f'The state after step {step} holds numbers that are not finite, so it'
        ' is not saved. The last good checkpoint is kept.'
      )
    with self._as_save_error():
      # Wait for the previous save, so that it can be checked.
      self._manager.wait_until_finished()
    self._check_index()
    with self._as_save_error():
      self._manager.save(
        step,
        args=ocp.args.StandardSave(integrity.saved_tree(state, checksum)),
        metrics=metrics and integrity.with_checksum(metrics),
      )
    self._unchecked_step = step

  def compile(self, state: TrainState) -> None:
    """Compiles the checks of `save`, so that the first save is not slow."""
    jax.block_until_ready(integrity.inspect(state))

  def save_again(
    self, state: TrainState, metrics: dict[str, float] | None
  ) -> None:
    """Repeats a failed save, and waits until the checkpoint is on disk.

    Raises:
      SaveError: it failed again; the earlier checkpoints are unchanged.
    """
    try:
      # The manager of the failed save would raise its error again.
      with self._as_save_error():
        self._manager = self._open()
      step = int(state.step)
      if self.latest_step() == step and not os.path.exists(self._index(step)):
        reason = f'The checkpoint of step {step} has no {_INDEX_FILE}.'
        integrity.set_aside(self._folder, {step: reason})
        self._manager.reload()
      if self.latest_step() != step:
        self.save(state, metrics)
      self.finish(expected_step=step)
    except SaveError as again:
      raise SaveError(
        f'{again} The newest checkpoint is that of step {self.latest_step()}.'
        ' Fix the cause; the same command continues from there.'
      ) from again

  @contextlib.contextmanager
  def _as_save_error(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax's threads raise errors of many types.
      self._unchecked_step = None
      text = str(error).strip().splitlines()
      raise SaveError(
        f'A checkpoint could not be written to {self._folder}:'
        f' {text[-1][:1000] if text else repr(error)}.'
      ) from error

  def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Adds the evaluation of a step to its checkpoint, which must have none.

    Raises:
      SaveError: it could not be written; the checkpoint is unchanged.
    """
    if jax.process_index() == 0:
      temporary = os.path.join(self._workdir, f'.metrics_{step}')
      with self._as_save_error():
        os.makedirs(temporary, exist_ok=True)
        text = json.dumps(integrity.with_checksum(metrics))
        write_atomically(os.path.join(temporary, 'metrics'), text)
        os.rename(temporary, os.path.join(self._folder, str(step), 'metrics'))
    multihost_utils.sync_global_devices('metrics are added')
    self._manager.reload()

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Returns the state at `step`; see `integrity.restore`."""
    return integrity.restore(self._manager, self._folder, step, target)

  def restore_newest(self, target: TrainState) -> TrainState | None:
    """Restores the newest intact checkpoint; returns None if none was saved.

    Damaged ones are moved to `workdir/damaged_checkpoints`, with a warning.

    Raises:
      InputError: all are damaged, or an intact one does not fit `target`.
    """
    for step in reversed(self.all_steps()):
      try:
        return self.restore(step, target)
      except DamagedError as error:  # Raised in all processes.
        integrity.set_aside(self._folder, {step: error})
        self._manager.reload()
    damaged = os.path.join(self._workdir, integrity.FOLDER)
    if os.path.isdir(damaged):
      raise InputError(
        f'{self._workdir} has no intact checkpoint left; the damaged ones are'
        f' in {damaged}. Put a good one into {self._folder}, or start again in'
        ' another --workdir.'
      )
    return None

  def check(self) -> None:
    """Raises a SaveError if a finished save has failed; does not wait."""
    is_done = not self._manager.is_saving_in_progress()
    with self._as_save_error():
      if is_done:
        # Orbax raises the error of its last thread only when asked to wait.
        self._manager.wait_until_finished()
      self._manager.check_for_errors()
    if is_done:
      self._check_index()

  def _check_index(self) -> None:
    """Raises a SaveError if the last save ended without writing its index.

    Nothing can be restored without the index. Process 0 writes it, so others
    may not see it yet.
    """
    step, self._unchecked_step = self._unchecked_step, None
    if step is None or jax.process_index() > 0:
      return
    if not os.path.exists(self._index(step)):
      raise SaveError(
        f'The checkpoint of step {step} cannot be restored: the save ended'
        f' without an error, but {self._index(step)} does not exist.'
      )

  def _index(self, step: int) -> str:
    return os.path.join(self._folder, str(step), STATE_FOLDER, _INDEX_FILE)

  def finish(self, expected_step: int) -> None:
    """Waits until all saves are on disk.

    Raises:
      SaveError: a save failed, or the newest checkpoint is not that of
        `expected_step`.
    """
    with self._as_save_error():
      self._manager.wait_until_finished()
    self._check_index()
    if self.latest_step() != expected_step:
      raise SaveError(
        f'The newest checkpoint is that of step {self.latest_step()}, not of'
        f' step {expected_step}.'
      )

  def close(self) -> None:
    """Waits for unfinished saves and closes the folder.

    Raises:
      SaveError: a save failed. Not raised while another exception is handled:
        Orbax repeats the error of a failed save, which would hide the other.
    """
    earlier = sys.exception()
    try:
      with self._as_save_error():
        self._manager.close()
    except SaveError:
      if earlier is None:
        raise
