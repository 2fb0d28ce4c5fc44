"""Updates that were skipped because the loss or a gradient was not finite.

`BadSteps` records them during a run; `replay` (`--mode=replay`) repeats one of
them and prints what was not finite.
"""

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np
import optax

from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError, RunError
from resnet.experiment import Experiment
from resnet.files import read_json_lines
from resnet.run import workdir as workdir_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.metrics_file import JsonLines
from resnet.training import compiler
from resnet.training import step as step_lib
from resnet.training.state import TrainState

FILE = 'bad_steps.jsonl'
_MOST_SHOWN = 10


class BadSteps:
  """Records the batches of skipped updates; ends a run with too many."""

  def __init__(self, experiment: Experiment, workdir: str, *, first_step: int):
    self._experiment = experiment
    self._path = os.path.join(workdir, FILE)
    self._first_step = first_step
    self._lines: JsonLines | None = None
    if os.path.exists(self._path):
      self._open()

  def _open(self) -> None:
    if jax.process_index() == 0 and self._lines is None:
      self._lines = JsonLines(self._path, first_step=self._first_step)

  def record(self, step: int, num_in_row: int) -> str:
    """Records the skipped update of a step; returns a warning.

    Raises:
      RunError: `max_bad_steps` updates in a row have been skipped.
    """
    records = record_keys(self._experiment, step)
    self._open()
    if self._lines:
      self._lines.write(
        {'step': step, 'in_row': num_in_row, 'records': records}
      )
      self._lines.sync()
    if num_in_row >= self._experiment.config['max_bad_steps']:
      raise RunError(
        f'Loss or gradients were not finite in {num_in_row} steps in a row, up'
        f' to step {step} (limit: max_bad_steps). --mode=replay shows what'
        f' was not finite; {self._path} lists the records of the batches. A'
        ' lower learning rate or other data need a run in a new --workdir.'
      )
    return (
      f'warning: loss or gradients of step {step} were not finite; its update'
      f' was skipped ({num_in_row} in a row).'
    )

  def close(self) -> None:
    """Closes the file."""
    if self._lines:
      self._lines.close()


def record_keys(experiment: Experiment, step: int) -> list[Any]:
  """Returns the keys of the records in the global batch of update `step`."""
  size = experiment.length.batch_size
  reader = dataclasses.replace(
    experiment.train_reader, row_start=0, row_count=size
  )
  try:
    return reader.keys(step - 1)
  except InputError as error:
    return [str(error)]


def replay(experiment: Experiment, workdir: str, step: int | None) -> int:
  """Repeats an update and prints what was not finite in it; writes no file.

  If `step` is None, takes the last one in `bad_steps.jsonl`. Returns the exit
  code.
  """
  if jax.process_count() > 1:
    raise InputError(
      f'--mode=replay needs one process, not {jax.process_count()}: leave out'
      ' --num_processes.'
    )
  saved = workdir_lib.read_config(workdir)
  if saved is None:
    raise InputError(f'{workdir} holds no run: type the --workdir of one.')
  workdir_lib.check_same_config(
    workdir, saved['config'], experiment.config, allow_change=True
  )
  experiment = experiment.with_statistics_of(saved['derived'])
  step = _check_step(experiment, workdir, step)
  first_step, state = _state_before(experiment, workdir, step)
  warnings = DataWarnings(experiment.train_reader.max_bad_images)
  batches = experiment.load(
    experiment.train_reader, warnings, first_step=first_step, num_steps=step
  )
  print(f'Step {step}, from the checkpoint of step {first_step}.')
  trains: dict[int, Any] = {}  # The jitted update by image size.
  for now in range(first_step, step - 1):
    size = experiment.sizes.at(now)
    if size not in trains:
      steps = step_lib.jit_steps(experiment.at(now).task, experiment.sharding)
      trains[size] = steps.train
    state, metrics = trains[size](state, next(batches))
    if int(metrics['skipped_in_row']):
      print(f'Step {now + 1} is not finite either and is skipped.')
  _print_not_finite(experiment, state, next(batches), step)
  batches.close()
  return 0


def _check_step(experiment: Experiment, workdir: str, given: int | None) -> int:
  path = os.path.join(workdir, FILE)
  bad = {line.get('step', 0): line for line in read_json_lines(path)}
  if given is None and not bad:
    raise InputError(
      f'{workdir} has no bad step in {FILE}: --replay_step=N replays any step.'
    )
  step = max(bad) if given is None else given
  if not 0 < step <= experiment.length.num_steps:
    raise InputError(
      f'--replay_step={step} is not in 1 .. {experiment.length.num_steps}.'
    )
  if step in bad and bad[step]['records'] != record_keys(experiment, step):
    raise InputError(
      f'The records of step {step} are not those in {path}: the data have'
      ' changed since then. Replay with the data of the run.'
    )
  return step


def _state_before(
  experiment: Experiment, workdir: str, step: int
) -> tuple[int, TrainState]:
  checkpoints = Checkpoints(workdir)
  if saved := [s for s in checkpoints.all_steps() if s < step]:
    state = checkpoints.restore(saved[-1], experiment.abstract_state())
    return saved[-1], state
  if experiment.config['init_from'] is not None:
    raise InputError(
      f'{workdir} has no checkpoint before step {step}, and its initial weights'
      ' were those of init_from: replay a later step.'
    )
  return 0, experiment.create_state()


def _print_not_finite(
  experiment: Experiment, state: TrainState, batch: step_lib.Batch, step: int
) -> None:
  """Prints which losses, gradients and statistics are not finite.

  Uses the whole batch at once; only the uphill gradients use micro-batches.
  """
  task = experiment.at(step - 1).task
  options = compiler.options(experiment.sharding.backend)

  @functools.partial(jax.jit, compiler_options=options)
  def compute(state: TrainState, batch: step_lib.Batch) -> Any:
    batch = step_lib.augment_batch(
      batch, state.step, task=task, sharding=experiment.sharding
    )
    logits, _ = task.model.apply(
      state.variables,
      task.normalize(batch['image']),
      train=True,
      mutable=['batch_stats'],
      rngs=step_lib.network_rngs(task, state.step),
    )
    grads, batch_stats, _ = step_lib.gradients(state, batch, task=task)
    trees = {'gradients': grads, 'batch_stats': batch_stats}
    if rho := task.sam_rho:
      uphill = step_lib.uphill_gradients(state, grads, batch, rho, task=task)
      trees['gradients uphill'] = uphill
    return task.loss_fn(logits, step_lib.targets(batch)), trees

  losses, trees = jax.device_get(compute(state, batch))
  keys = record_keys(experiment, step)
  norm = optax.tree.norm(trees['gradients'])
  print(f'loss {losses.mean():.4g}, gradient norm {norm:.4g}')
  bad_rows = np.flatnonzero(~np.isfinite(losses))
  bad = {f'{len(keys)} losses': [keys[row] for row in bad_rows]}
  for name, tree in trees.items():
    bad[f'the {name}'] = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
      if not np.all(np.isfinite(leaf))
    ]
  for what, names in bad.items():
    print(f'{len(names)} of {what} are not finite')
    for name in names[:_MOST_SHOWN]:
      print(f'  {name}')
