"""Checkpoints of a run: Orbax, asynchronous, the latest few and the best."""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet.errors import InputError, RunError
from resnet.files import write_atomically
from resnet.run import integrity
from resnet.run.integrity import STATE_FOLDER, DamagedError
from resnet.run.workdir import CHECKPOINTS as FOLDER
from resnet.training.state import TrainState
from resnet.weights import best_step, score

# The index of the state, which Orbax writes last.
_INDEX_FILE = 'manifest.ocdbt'


class SaveError(RunError):
  """A checkpoint could not be written."""


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
    """Opens the folder; moves checkpoints with damaged metrics out of it.

    Args:
      workdir: of the run.
      keep: how many of the latest checkpoints to keep, besides the best by
        `weights.score`; None opens the folder to read, and a damaged one is an
        error.
      say: gets a warning for each that is moved.
    """
    self._workdir = os.path.abspath(workdir)
    self._folder = os.path.join(self._workdir, FOLDER)
    self._keep = keep
    damaged = integrity.find_damaged_metrics(self._folder)
    for error in damaged.values():
      if keep is None:
        raise error
      say(f'warning: {error}')
    multihost_utils.sync_global_devices('metrics are read')
    integrity.set_aside(self._folder, [*damaged])
    self._manager = self._open()
    # The step whose save may still be in progress, or has not been checked.
    self._unchecked_step: int | None = None

  def _open(self) -> ocp.CheckpointManager:
    kept: dict[str, Any] = {'read_only': True, 'create': False}
    if self._keep is not None:
      best = preservation_policy.BestN(
        n=1, get_metric_fn=score, keep_checkpoints_without_metrics=False
      )
      policies = [preservation_policy.LatestN(self._keep), best]
      kept = {
        'preservation_policy': preservation_policy.AnyPreservationPolicy(
          policies
        ),
        'cleanup_tmp_directories': True,
      }
    return ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(best_fn=score, **kept),
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
    return best_step(self._manager, self.metrics)

  def metrics(self, step: int) -> dict[str, Any] | None:
    """Returns the evaluation saved with a step, None if there was none."""
    try:
      metrics = self._manager.metrics(step)
      return metrics and integrity.without_checksum(metrics)
    except Exception as error:  # Whatever damaged files make Orbax raise.
      raise integrity.error_of(self._folder, step, error) from error

  def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Begins to save a state with the evaluation at its step, if any.

    The state may be donated as soon as this returns.

    Raises:
      RunError: a number is not finite; nothing is written.
      SaveError: it could not be written, or the one before.
    """
    checksum, is_finite = integrity.inspect(state)
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
        args=ocp.args.StandardSave(integrity.saved_tree(state, checksum)),
        metrics=metrics and integrity.with_checksum(metrics),
      )
    self._unchecked_step = step

  def compile(self, state: TrainState) -> None:
    """Compiles what `save` works out, which may take its time."""
    jax.block_until_ready(integrity.inspect(state))

  def save_now(
    self,
    state: TrainState,
    metrics: dict[str, float] | None,
    error: SaveError,
    say: Callable[[str], None],
  ) -> None:
    """Tries again after `error`, a second time, and waits for the end.

    Raises:
      SaveError: it failed again, or there are several processes, of which the
        others know nothing of it; the checkpoints before are as they were.
    """
    if jax.process_count() > 1:
      raise error
    say(f'warning: {error} Trying again.')
    # The thread of the failed save would tell its error once more.
    try:
      with self._as_save_error():
        self._manager = self._open()
      step = int(state.step)
      if self.latest_step() == step and not os.path.exists(self._index(step)):
        integrity.set_aside(self._folder, [step])
        self._manager.reload()
      if self.latest_step() != step:
        self.save(state, metrics)
      self.finish(expected_step=step)
    except SaveError as again:
      raise SaveError(
        f'{again} The newest checkpoint is of step {self.latest_step()}.'
        ' Fix that; the same command continues from there.'
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

  def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Adds the evaluation of a step to its checkpoint, which has none.

    Raises:
      SaveError: it could not be written; the checkpoint is as it was.
    """
    if jax.process_index() == 0:
      beside = os.path.join(self._workdir, f'.metrics_{step}')
      with self._as_save_error():
        os.makedirs(beside, exist_ok=True)
        text = json.dumps(integrity.with_checksum(metrics))
        write_atomically(os.path.join(beside, 'metrics'), text)
        os.rename(beside, os.path.join(self._folder, str(step), 'metrics'))
    multihost_utils.sync_global_devices('metrics are added')
    self._manager.reload()

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Returns the state at `step`; see `integrity.restore`."""
    return integrity.restore(self._manager, self._folder, step, target)

  def restore_newest(
    self, target: TrainState, say: Callable[[str], None]
  ) -> TrainState | None:
    """Restores the newest checkpoint that is whole; None: there is none.

    Damaged ones are moved to `workdir/damaged_checkpoints`, with a warning; it
    is an InputError if all are damaged.
    """
    for step in reversed(self.all_steps()):
      try:
        return self.restore(step, target)
      except DamagedError as error:  # For all processes.
        say(f'warning: {error}')
      integrity.set_aside(self._folder, [step])
      self._manager.reload()
    damaged = os.path.join(self._workdir, integrity.FOLDER)
    if os.path.isdir(damaged):
      raise InputError(
        f'{self._workdir} has no whole checkpoint left; the damaged ones are in'
        f' {damaged}. Put a good one into {self._folder}, or begin'
        ' anew with another --workdir.'
      )
    return None

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
    return os.path.join(self._folder, str(step), STATE_FOLDER, _INDEX_FILE)

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
    """Waits for what is being written and lets go of the folder.

    Raises:
      SaveError: a save failed, and no other error is on its way: after a failed
        save Orbax raises anew, which must not take the place of that error.
    """
    earlier = sys.exception()
    try:
      with self._as_save_error():
        self._manager.close()
    except SaveError:
      if earlier is None:
        raise
