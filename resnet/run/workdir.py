"""Reads and writes the config in a workdir; checks if a run may continue."""

from collections.abc import Collection, Mapping
import json
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.fields import FREE_FIELDS, SAFE_FIELDS
from resnet.files import read_json_lines, write_atomically, writing
from resnet.run.provenance import read_last_step

CONFIG_FILE = 'config.json'
METRICS_FILE = 'metrics.jsonl'
CURVES_FILE = 'curves.png'
CHECKPOINTS = 'checkpoints'


def check_name(workdir: str) -> None:
  """Refuses an address such as gs://..., which would become a local folder."""
  if '://' in workdir:
    raise InputError(
      f'--workdir={workdir} is an address, not a folder: type a folder on a'
      ' disk that all processes share.'
    )


# Orbax finds the parts of a checkpoint by a glob of its unescaped path. In a
# path with these characters it silently finds none, or those of another folder.
_GLOB_CHARACTERS = '*?[]\\'


def check_can_save(workdir: str) -> None:
  """Refuses a folder whose path Orbax would treat as a pattern."""
  path = os.path.abspath(workdir)
  if found := [c for c in _GLOB_CHARACTERS if c in path]:
    raise InputError(
      f'--workdir={workdir} is the folder {path}. Checkpoints cannot be saved'
      f' in a path with {" or ".join(found)}: type another --workdir.'
    )


def read_config(workdir: str) -> dict[str, Any] | None:
  """Returns {'config': fields, 'derived': numbers}; None if there is no run.

  Raises:
    InputError: the file cannot be read or was not written by `write_config`, or
      `workdir` is an address.
  """
  check_name(workdir)
  path = os.path.join(workdir, CONFIG_FILE)
  try:
    with open(path) as file:
      saved = json.load(file)
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read: {error}') from None
  if not isinstance(saved, dict) or not all(
    isinstance(saved.get(part), dict) for part in ('config', 'derived')
  ):
    raise InputError(f'{path} is not the config of a run.')
  return saved


def check_same_config(
  workdir: str,
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  ignore: Collection[str] = FREE_FIELDS,
  allow_change: bool | None = None,
) -> list[str]:
  """Checks that two configs differ only in fields that may change.

  Args:
    workdir: folder of the saved config, for messages.
    saved: saved values by field.
    config: values of the new command by field.
    ignore: fields that need not be equal.
    allow_change: SAFE_FIELDS need not be equal (--allow_config_change); None:
      the command does not have that flag.

  Returns:
    The allowed differences as text.

  Raises:
    InputError: other fields differ; the message lists them.
  """
  fields = [
    field
    for field in sorted(saved.keys() | config.keys())
    if field not in ignore and saved.get(field) != config.get(field)
  ]
  differences = [
    f'{field}: {saved.get(field)!r} there, {config.get(field)!r} now'
    for field in fields
  ]
  may_change = allow_change is not None and set(fields) <= SAFE_FIELDS
  if not differences or (may_change and allow_change):
    return differences
  remedy = (
    f'Type the old values (--config=configs/saved.py:{workdir} has them) or'
    ' another --workdir'
  )
  if may_change:
    remedy += ', or continue with the new values: --allow_config_change'
  elif fields == ['num_epochs'] and config['num_epochs'] > saved['num_epochs']:
    remedy += (
      '. The length of a run is fixed; train its weights further in a new'
      f' --workdir with --config.init_from={workdir}'
    )
  raise InputError(
    f'{workdir} holds a run with another config ({"; ".join(differences)}).'
    f' {remedy}.'
  )


def write_config(
  workdir: str, config: Mapping[str, Any], derived: Mapping[str, Any]
) -> None:
  """Writes config.json; raises an InputError if it cannot be written."""
  text = json.dumps({'config': config, 'derived': derived}, indent=2) + '\n'
  path = os.path.join(workdir, CONFIG_FILE)
  with writing(path):
    write_atomically(path, text)


def check(
  experiment: Experiment, workdir: str, allow_config_change: bool
) -> tuple[bool, Experiment, list[str]]:
  """Checks that the run in `workdir`, if any, is that of `experiment`.

  Returns:
    Whether a run was started in `workdir`; the experiment; and the changes to
    the config as text. With `init_from`, the experiment takes its mean and std
    from the config saved in `workdir`, as the source of weights may be gone.

  Raises:
    InputError: the workdir cannot be used, or holds another run.
  """
  check_can_save(workdir)
  saved = read_config(workdir)
  # Before any process writes: all must see a config.json, or none may.
  exists = multihost_utils.process_allgather(np.int32(saved is not None))
  if len(np.unique(exists)) > 1:
    raise _not_shared(workdir)
  if saved is None:
    if os.path.isdir(os.path.join(workdir, CHECKPOINTS)):
      raise InputError(
        f'{workdir} has checkpoints but no config.json, so their run is'
        ' unknown: type another --workdir.'
      )
    return False, experiment, []
  if experiment.config['init_from'] is not None:
    experiment = experiment.with_statistics_of(saved['derived'])
  changed = check_same_config(
    workdir,
    saved['config'],
    experiment.config,
    allow_change=allow_config_change,
  )
  # The data may have been prepared again under the same name.
  check_same_config(workdir, saved['derived'], experiment.derived())
  return True, experiment, changed


def _not_shared(workdir: str) -> InputError:
  return InputError(
    f'--workdir={workdir} is not the same folder for all'
    f' {jax.process_count()} processes: type one that they share.'
  )


def write_shared_config(workdir: str, experiment: Experiment) -> None:
  """Writes config.json; raises an InputError if a process cannot see it."""
  if jax.process_index() == 0:
    write_config(workdir, experiment.config, experiment.derived())
  multihost_utils.sync_global_devices('config.json')
  if read_config(workdir) is None:
    raise _not_shared(workdir)


def check_not_lost(workdir: str, save_every_steps: int) -> None:
  """Refuses a run whose checkpoints were deleted."""
  step = read_last_step(workdir)
  lines = read_json_lines(os.path.join(workdir, METRICS_FILE))
  logged = max((line.get('step', 0) for line in lines), default=0)
  # A save waits for the one before, so after two saves one was on disk.
  if logged > 2 * save_every_steps:
    step = max(step, logged)
  if step:
    raise InputError(
      f'{workdir} has reached step {step}, but holds no checkpoint: restore its'
      f' folder {CHECKPOINTS}, or start again in another --workdir.'
    )
