"""Finds checkpoints in folders of Orbax, and the best one of a run."""

from collections.abc import Callable, Mapping
import os
from typing import Any

import orbax.checkpoint as ocp

from resnet.errors import InputError
from resnet.files import reading


def score(evaluation: Mapping[str, float]) -> float:
  """Returns the score by which the best checkpoint of a run is chosen.

  It is the top-1 accuracy, of the moving averages if the run keeps them.
  """
  return evaluation.get('eval_ema/top1', evaluation['eval/top1'])


def best_step(
  manager: ocp.CheckpointManager, metrics: Callable[[int], Any]
) -> int | None:
  """Returns the step with the highest `score`; None if none was evaluated."""
  step = manager.best_step()
  return None if step is None or metrics(step) is None else step


def find_arrays(folder: str) -> str:
  """Returns the folder of a checkpoint's arrays.

  `folder` is a workdir, a folder of steps, a checkpoint or already the result.
  If there are several steps, it is that of the highest `score`, or the latest
  one if none was evaluated.

  Raises:
    InputError: there is no checkpoint in the folder.
  """
  if os.path.exists(os.path.join(folder, '_METADATA')):
    return folder
  if os.path.isdir(os.path.join(folder, 'default')):
    return os.path.join(folder, 'default')
  options = ocp.CheckpointManagerOptions(
    best_fn=score, read_only=True, create=False
  )
  for steps in (os.path.join(folder, 'checkpoints'), folder):
    if not (os.path.isdir(steps) and any(map(str.isdigit, os.listdir(steps)))):
      continue
    with (
      reading(f'{steps} cannot be read', Exception),
      ocp.CheckpointManager(steps, options=options) as manager,
    ):
      step = best_step(manager, manager.metrics)
      step = manager.latest_step() if step is None else step
    if step is None:
      raise InputError(f'{steps} holds no finished checkpoint.')
    return os.path.join(steps, str(step), 'default')
  raise InputError(
    f'{folder} is neither a workdir nor an Orbax checkpoint, and has no'
    ' model.safetensors or pytorch_model.bin: give the path of its weight file.'
  )
