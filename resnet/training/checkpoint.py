"""Checkpoints of a run: Orbax, asynchronous, the latest few and the best."""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from resnet.errors import InputError
from resnet.training.state import TrainState

FOLDER = 'checkpoints'


def _top1(metrics: dict[str, Any]) -> float:
  return metrics['eval/top1']


class Checkpoints:
  """The folder `workdir/checkpoints`, one subfolder a step.

  A failed save surfaces at the next `save`, at `finish`, and at the first
  `check` after it ended.
  """

  def __init__(self, workdir: str, *, keep: int | None = None):
    """Opens the folder.

    Args:
      workdir: of the run.
      keep: how many of the latest checkpoints to keep, besides the best by
        'eval/top1'; None opens an existing folder to read only.
    """
    folder = os.path.join(os.path.abspath(workdir), FOLDER)
    if keep is None:
      options = ocp.CheckpointManagerOptions(
        best_fn=_top1, read_only=True, create=False
      )
    else:
      options = ocp.CheckpointManagerOptions(
        best_fn=_top1,
        preservation_policy=preservation_policy.AnyPreservationPolicy(
          [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
              n=1, get_metric_fn=_top1, keep_checkpoints_without_metrics=False
            ),
          ]
        ),
        cleanup_tmp_directories=True,
      )
    self._manager = ocp.CheckpointManager(
      folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
    )

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """Returns the step of the highest eval top-1, None without evaluation."""
    step = self._manager.best_step()
    return None if step is None or self.metrics(step) is None else step

  def metrics(self, step: int) -> dict[str, Any] | None:
    """Returns the evaluation saved with a step, None if there was none."""
    try:
      return self._manager.metrics(step)
    except Exception as error:  # Whatever damaged files make Orbax raise.
      raise self._damaged(step, error) from error

  def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
    """Begins to save; the state may be donated as soon as this returns.

    Args:
      state: to save, under its own step.
      metrics: of the evaluation at this step, if there was one.
    """
    self._manager.save(
      int(state.step), args=ocp.args.StandardSave(state), metrics=metrics
    )

  def restore(self, step: int, target: TrainState) -> TrainState:
    """Returns the state at `step`, placed as `target` (abstract) says.

    Raises:
      InputError: what is stored has not the tree, shapes and dtypes of
        `target`; nothing was read then.
    """
    # Orbax would cast dtypes silently, and fail only after it began to read.
    try:
      stored = _describe(self._manager.item_metadata(step))
    except Exception as error:
      raise self._damaged(step, error) from error
    if not stored:
      raise self._damaged(step, 'its metadata are missing')
    wanted = _describe(target)
    for path in sorted(stored.keys() | wanted.keys()):
      if stored.get(path) != wanted.get(path):
        raise InputError(
          f'The checkpoint of step {step} in {self._manager.directory} does not'
          f' fit this config: {path} is {stored.get(path, "missing")} there,'
          f' {wanted.get(path, "missing")} here.'
        )
    try:
      restored: Any = self._manager.restore(
        step, args=ocp.args.StandardRestore(target)
      )
    except Exception as error:
      raise self._damaged(step, error) from error
    return restored

  def _damaged(self, step: int, reason: object) -> InputError:
    text = str(reason).splitlines()[0] if str(reason) else repr(reason)
    return InputError(
      f'The checkpoint of step {step} in {self._manager.directory} cannot be'
      f' read ({text[:200]}). Move the folder {step} away, and the run goes on'
      ' from the one before it.'
    )

  def check(self) -> None:
    """Raises what went wrong in a save that has ended; does not wait."""
    if not self._manager.is_saving_in_progress():
      # Orbax tells the errors of its last thread only to those who wait.
      self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def finish(self, expected_step: int) -> None:
    """Waits until all is written.

    Raises:
      RuntimeError: the newest checkpoint is not that of `expected_step`.
    """
    self._manager.wait_until_finished()
    if self.latest_step() != expected_step:
      raise RuntimeError(
        f'The newest checkpoint is of step {self.latest_step()}, not'
        f' {expected_step}.'
      )

  def close(self) -> None:
    """Waits for what is being written and lets go of the folder."""
    self._manager.close()


def _describe(tree: Any) -> dict[str, str]:
  """Returns dtype and shape by path, such as 'params/head/bias'."""
  return {
    '/'.join(
      str(getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key))))
      for key in path
    ): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
