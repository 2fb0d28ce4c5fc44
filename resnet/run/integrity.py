"""Finds damaged checkpoints and sets them aside.

A checksum of the arrays, computed on the devices before a save and after a
restore, is stored with each state: Orbax notices neither a flipped byte nor a
missing file of zeros. Metrics have a checksum too: Orbax cannot open a folder
in which those of one checkpoint are no JSON.
"""

from collections.abc import Mapping, Sequence
import dataclasses
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

# Beside the folder of checkpoints, so that Orbax does not see it.
FOLDER = 'damaged_checkpoints'
# The folder of the state in a checkpoint.
STATE_FOLDER = 'default'
# The checksum among the metrics of a checkpoint.
_CRC = 'crc32'
_OF_MACHINE = (
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM),
  *(errno.EIO, errno.ESTALE),
)


class DamagedError(InputError):
  """A checkpoint cannot be read, or is not what was saved."""


def error_of(folder: str, step: int, reason: object) -> DamagedError:
  """Returns the error of a damaged checkpoint.

  Raises:
    RunError: instead, where the machine is to blame: the files may be good.
  """
  if _is_of_machine(reason):
    raise RunError(
      f'The checkpoint of step {step} in {folder} cannot be read now: {reason}.'
      ' It stays where it is; the same command tries again.'
    )
  text = str(reason).splitlines()[0] if str(reason) else repr(reason)
  return DamagedError(
    f'The checkpoint of step {step} in {folder} is damaged ({text[:200]}).'
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


def with_checksum(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns metrics as they lie on disk."""
  text = json.dumps(metrics, sort_keys=True)
  return {**metrics, _CRC: zlib.crc32(text.encode())}


def without_checksum(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Returns metrics as they were before `with_checksum`."""
  return {name: value for name, value in saved.items() if name != _CRC}


def find_damaged_metrics(folder: str) -> dict[int, DamagedError]:
  """Returns the errors of checkpoints whose metrics are not what was saved."""
  errors = {}
  for path in sorted(pathlib.Path(folder).glob('*/metrics/metrics')):
    step = path.parts[-3]
    if not step.isdigit():  # Half a checkpoint, which Orbax removes.
      continue
    try:
      saved = json.loads(path.read_text())
      if with_checksum(without_checksum(saved)) != saved:
        raise ValueError('the checksum of its metrics does not fit')
    except (OSError, ValueError, AttributeError) as error:
      errors[int(step)] = error_of(folder, int(step), error)
  return errors


def set_aside(folder: str, steps: Sequence[int]) -> None:
  """Moves damaged checkpoints out of Orbax's sight; all processes call this."""
  target = os.path.join(os.path.dirname(folder), FOLDER)
  for step in steps if jax.process_index() == 0 else ():
    os.makedirs(target, exist_ok=True)
    names = (str(step), *(f'{step}_{i}' for i in range(1, 1000)))
    free = next(n for n in names if not os.path.lexists(f'{target}/{n}'))
    os.rename(os.path.join(folder, str(step)), f'{target}/{free}')
  multihost_utils.sync_global_devices('damaged checkpoints are set aside')


def restore(
  manager: ocp.CheckpointManager, folder: str, step: int, target: TrainState
) -> TrainState:
  """Returns the state at `step`, placed like `target`, which is abstract.

  All processes return, or all raise.

  Raises:
    DamagedError: it cannot be read, or is not what was saved.
    InputError: its tree, shapes or dtypes are others than those of `target`.
  """
  failure, restored = None, {}
  try:
    restored = _read(manager, folder, step, target)
  except DamagedError as error:
    failure = error
  # The checksum is worked out by all processes together.
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
    # Orbax would cast dtypes silently, and fail only after it began to read.
    stored = _describe(manager.item_metadata(step))
    if not stored:
      raise ValueError('its metadata are missing')
    if stored == wanted:
      # Not by the manager: it waits for all processes, and one that cannot read
      # its part does not come.
      return ocp.StandardCheckpointHandler().restore(
        epath.Path(folder, str(step), STATE_FOLDER),
        args=ocp.args.StandardRestore(target_tree),
      )
  except Exception as error:  # Whatever damaged files make Orbax raise.
    raise error_of(folder, step, error) from error
  path = min(p for p, _ in stored.items() ^ wanted.items())
  raise InputError(
    f'The checkpoint of step {step} in {folder} does not fit this config:'
    f' {path} is {stored.get(path, "missing")} there,'
    f' {wanted.get(path, "missing")} here.'
  )


@jax.jit
def inspect(state: TrainState) -> tuple[jax.Array, jax.Array]:
  """Returns the checksum of a state, and whether all of it is finite."""
  return guards.checksum(state), guards.all_finite(state)


def saved_tree(state: TrainState, checksum: Any) -> dict[str, Any]:
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
    jax.tree_util.keystr(
      path, simple=True, separator='/'
    ): f'{leaf.dtype}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
