"""Evaluates a checkpoint of a run, or the weights that a config names."""

from typing import Any

import jax

from resnet.data.host.warnings import Notes
from resnet.errors import InputError
from resnet.evaluation.evaluate import describe, evaluate
from resnet.experiment import Experiment
from resnet.run import workdir as workdir_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.initialize import open_weights
from resnet.training.state import TrainState
from resnet.training.step import jit_steps


def evaluate_checkpoint(
  experiment: Experiment, workdir: str, which: str
) -> int:
  """Evaluates a checkpoint of a run and prints the result; writes nothing.

  Args:
    experiment: its model must be that of the run, its data may be others;
      they are normalised as the run's were.
    workdir: of the run; without one, `init_from` of the config is evaluated.
    which: 'best' (by eval top-1; the latest if none was evaluated), 'latest'.

  Returns:
    The exit code.

  Raises:
    InputError: there is no checkpoint and no weights, or of another model.
  """
  step, state, experiment = open_state(experiment, workdir, which)
  steps = jit_steps(experiment.task, experiment.sharding)
  notes = Notes(experiment.eval_reader.max_bad_images)
  try:
    values = evaluate(experiment, steps, state, notes)
    assert values is not None  # Nothing stops it.
  finally:
    for line in notes.take():
      print(line)
  if jax.process_index() == 0:
    print(describe(step, values))
  return 0


def open_state(
  experiment: Experiment, workdir: str, which: str
) -> tuple[int, TrainState, Experiment]:
  """Returns step and state to evaluate, and the experiment normalised as it.

  Args and raises as `evaluate_checkpoint`.
  """
  saved = workdir_lib.read_config(workdir)
  if saved is not None:
    return _restore(experiment, workdir, saved, which)
  if experiment.init_from is None:
    raise InputError(
      f'{workdir} holds no run: train one first, or give its --workdir, or'
      ' weights: --config.init_from=...'
    )
  state, experiment = _initial_state(experiment)
  return 0, state, experiment


def _restore(
  experiment: Experiment, workdir: str, saved: dict[str, Any], which: str
) -> tuple[int, TrainState, Experiment]:
  data_fields = {f for f in experiment.config if not f.startswith('model.')}
  workdir_lib.check_same_config(
    workdir, saved['config'], experiment.config, ignore=data_fields
  )
  checkpoints = Checkpoints(workdir)
  step = checkpoints.best_step() if which == 'best' else None
  step = checkpoints.latest_step() if step is None else step
  if step is None:
    raise InputError(f'{workdir} holds no checkpoint yet.')
  experiment = experiment.with_statistics_of(saved['derived'])
  state = checkpoints.restore(step, experiment.abstract_state())
  return step, state, experiment


def _initial_state(experiment: Experiment) -> tuple[TrainState, Experiment]:
  initial, experiment = open_weights(experiment)
  if initial.new_head:
    raise InputError(
      f'{initial.source.name} is for another number of classes than the data:'
      ' there is nothing to evaluate before it is trained.'
    )
  if jax.process_index() == 0:
    print(initial.describe())
  return initial.apply(experiment.create_state()), experiment
