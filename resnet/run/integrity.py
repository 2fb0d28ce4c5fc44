"""Detects damaged checkpoints and sets them aside.

Each state is stored with a checksum of its arrays, computed on the devices
before a save and after a restore, because Orbax does not detect a flipped byte.
Metrics have a checksum too, because Orbax cannot open a folder in which the
metrics of one checkpoint are not valid JSON.
"""

from collections.abc import Mapping
import errno
import json
import os
import pathlib
from typing import Any
import zlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from resnet.errors import InputError, RunError
from resnet.training import guards
from resnet.training.state import TrainState

# Next to the checkpoints' folder, not in it, so that Orbax does not read it.
FOLDER = 'damaged_checkpoints'
# The subfolder of a checkpoint that holds the state.
STATE_FOLDER = 'default'
# The name of the checksum among the metrics of a checkpoint.
_CRC = 'crc32'
# Errors of the machine, which say nothing about the content of a file.
_MACHINE_ERRORS = (
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.ESTALE),
)


class DamagedError(InputError):
  """A checkpoint cannot be read or differs from what was saved."""


def error_of(folder: str, step: int, reason: object) -> DamagedError:
  """Returns the error for a damaged checkpoint.

  Raises:
    RunError: the cause is the machine, so the files may be intact.
  """
  if _is_machine_error(reason):
    raise RunError(
      f'The checkpoint of step {step} in {folder} cannot be read now: {reason}.'
      ' It was not moved. Run the same command to try again.'
    )
  text = str(reason).splitlines()[0] if str(reason) else repr(reason)
  return DamagedError(
    f'The checkpoint of step {step} in {folder} is damaged ({text[:200]}).'
  )


def _is_machine_error(reason: Any) -> bool:
  """Whether an error or one of its causes comes from the machine."""
  while isinstance(reason, BaseException):
    if isinstance(reason, MemoryError) or 'RESOURCE_EXHAUSTED' in str(reason):
      return True
    if getattr(reason, 'errno', None) in _MACHINE_ERRORS:
      return True
    reason = reason.__cause__ or reason.__context__
  return False


def with_checksum(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns metrics with their checksum, as they are stored on disk."""
  text = json.dumps(metrics, sort_keys=True)
  return {**metrics, _CRC: zlib.crc32(text.encode())}


def without_checksum(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Returns stored metrics without their checksum."""
  return {name: value for name, value in saved.items() if name != _CRC}


def find_damaged_metrics(folder: str) -> dict[int, DamagedError]:
  """Returns the error of each checkpoint with damaged metrics, by step."""
  errors = {}
  for path in sorted(pathlib.Path(folder).glob('*/metrics/metrics')):
    step = path.parts[-3]
    if not step.isdigit():  # An unfinished checkpoint, which Orbax removes.
      continue
    try:
      saved = json.loads(path.read_text())
      if with_checksum(without_checksum(saved)) != saved:
        raise ValueError('the checksum of its metrics does not fit')
    except (OSError, ValueError, AttributeError) as error:
      errors[int(step)] = error_of(folder, int(step), error)
  return errors


def set_aside(folder: str, damaged: Mapping[int, object]) -> None:
  """Moves damaged checkpoints to FOLDER; prints the reason for each step.

  All processes must call this.
  """
  target = os.path.join(os.path.dirname(folder), FOLDER)
  for step, reason in damaged.items() if jax.process_index() == 0 else ():
    print(f'warning: {reason}')
    os.makedirs(target, exist_ok=True)
    names = (str(step), *(f'{step}_{i}' for i in range(1, 1000)))
    free = next(n for n in names if not os.path.lexists(f'{target}/{n}'))
    os.rename(os.path.join(folder, str(step)), f'{target}/{free}')
  multihost_utils.sync_global_devices('damaged checkpoints are set aside')


def restore(
  manager: ocp.CheckpointManager, folder: str, step: int, target: TrainState
) -> TrainState:
  """Returns the state at `step`, sharded like the abstract state `target`.

  Either all processes return or all raise.

  Raises:
    DamagedError: it cannot be read or differs from what was saved.
    InputError: its tree, shapes or dtypes differ from those of `target`.
  """
  failure, restored = None, {}
  try:
    restored = _read(manager, folder, step, target)
  except DamagedError as error:
    failure = error
  # All processes compute the checksum together.
  is_read = multihost_utils.process_allgather(np.int32(failure is None))
  if not np.all(is_read):
    raise failure or error_of(folder, step, 'another process cannot read it')
  checksum = restored.pop('checksum')
  state = TrainState(**{'ema': None, **restored})
  if inspect(state)[0] != checksum:
    raise error_of(folder, step, 'its checksum does not fit')
  return state


def _read(
  manager: ocp.CheckpointManager, folder: str, step: int, target: TrainState
) -> Any:
  checksum = jax.ShapeDtypeStruct((), 'uint32', sharding=target.step.sharding)
  target_tree = saved_tree(target, checksum)
  wanted = _describe(target_tree)
  try:
    # Orbax would silently cast dtypes, and fail on other differences late.
    stored = _describe(manager.item_metadata(step))
    if not stored:
      raise ValueError('its metadata is missing')
    if stored == wanted:
      # The manager would wait for all processes, and so would hang if one of
      # them could not read its part.
      return ocp.StandardCheckpointHandler().restore(
        epath.Path(folder, str(step), STATE_FOLDER),
        args=ocp.args.StandardRestore(target_tree),
      )
  except Exception as error:  # Damaged files make Orbax raise anything.
    raise error_of(folder, step, error) from error
  path = min(p for p, _ in stored.items() ^ wanted.items())
  raise InputError(
    f'The checkpoint of step {step} in {folder} does not fit this config:'
    f' {path} is {stored.get(path, "missing")} there,'
    f' {wanted.get(path, "missing")} here.'
  )


@jax.jit
def inspect(state: TrainState) -> tuple[jax.Array, jax.Array]:
  """Returns the checksum of a state and whether all its numbers are finite."""
  return guards.checksum(state), guards.all_finite(state)


def saved_tree(state: TrainState, checksum: Any) -> dict[str, Any]:
  """Returns the tree that is stored: the fields of a state and its checksum."""
  tree = {**vars(state), 'checksum': checksum}
  if state.ema is None:
    del tree['ema']
  return tree


def _describe(tree: Any) -> dict[str, str]:
  """Returns dtype and shape by path, such as 'params/head/bias'."""
  return {
    jax.tree_util.keystr(
      path, simple=True, separator='/'
    ): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
