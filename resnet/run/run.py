"""Starts or resumes a run, trains it and reports its outcome.

A run starts from the newest intact checkpoint in the workdir, otherwise from
the weights of `init_from`, otherwise from random weights.
"""

from collections.abc import Callable, Sequence
import contextlib
import importlib.util
import os
import signal
import sys
import time
from typing import Any

import jax

from resnet import fields, files
from resnet.data.host.loader import DeviceLoader
from resnet.data.host.warnings import DataWarnings
from resnet.data.host.workers import check_shared_memory
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.output import ProgressBar
from resnet.run import workdir as workdir_lib
from resnet.run.checkpoint import FOLDER, Checkpoints, DamagedError
from resnet.run.initialize import open_weights
from resnet.run.loop import Loop
from resnet.run.provenance import record_end, record_start
from resnet.run.reference import Reference
from resnet.run.stopping import Outcome, StopSignal
from resnet.training.state import TrainState


def run(
  experiment: Experiment, workdir: str, *, start_time: float, **options: Any
) -> int:
  """Trains, prints the outcome and returns the exit code; see `train`."""
  outcome = train(experiment, workdir, start_time=start_time, **options)
  if jax.process_index() == 0:
    _print_outcome(outcome, experiment.length.num_steps, workdir, start_time)
  return 0 if outcome.signal is None else 128 + outcome.signal


def _print_outcome(
  outcome: Outcome, num_steps: int, workdir: str, start_time: float
) -> None:
  if outcome.signal is not None:
    saved = 'it is saved. The same command continues.'
    if not outcome.step:
      saved = 'there was nothing to save. The same command continues.'
    elif outcome.step == num_steps and outcome.metrics:
      saved = 'the run is complete.'
    print(
      f'Stopped by {signal.Signals(outcome.signal).name} after step'
      f' {outcome.step} of {num_steps}; {saved}'
    )
    return
  if outcome.was_complete:
    print(f'The run in {workdir} is complete: nothing to do.')
  table, metrics = {'steps': f'{num_steps:,}'}, outcome.metrics or {}
  names = {'top1': 'top-1', 'top5': 'top-5', 'loss': 'loss'}
  for prefix, kind in (('eval', 'eval'), ('eval_ema', 'ema')):
    for metric, name in names.items():
      if (value := metrics.get(f'{prefix}/{metric}')) is not None:
        table[f'{kind} {name}'] = f'{value:.4f}'
  if outcome.images_per_second:
    table['images/s'] = f'{outcome.images_per_second:,.0f}'
  if not outcome.was_complete:
    table['wall time'] = f'{time.time() - start_time:.1f} s'
  table['files'] = workdir
  width = max(map(len, table))
  for name, text in table.items():
    print(f'  {name:<{width}}  {text}')


def train(
  experiment: Experiment,
  workdir: str,
  *,
  start_time: float,
  reference: Reference | None = None,
  allow_config_change: bool = False,
  on_leave: Callable[[str, int], None] | None = None,
  draw: Callable[[str], None] | None = None,
) -> Outcome:
  """Trains in `workdir`, from its newest checkpoint if it has one.

  Args:
    experiment: the run to train.
    workdir: folder of the run, created if missing. In a new run, nothing is
      written before the first batch of each split has been read.
    start_time: time.time() at the start of the program.
    reference: warn when the run leaves this band.
    allow_config_change: let the fields in SAFE_FIELDS differ from the saved
      ones.
    on_leave: see `StopSignal`.
    draw: draws the curves of a workdir once the run is complete.

  Raises:
    InputError: the workdir has another config, is in use or cannot be written,
      a record is broken, or `wandb` is set but not installed.
    RunError: the disk, a worker or a number that is not finite ended the run.
  """
  if experiment.config['wandb'] and importlib.util.find_spec('wandb') is None:
    text = '--config.wandb needs the package wandb: type pip install wandb'
    raise InputError(text)
  grace_seconds = experiment.config['preemption_grace_seconds']
  with (
    StopSignal(grace_seconds=grace_seconds, on_leave=on_leave) as stop,
    contextlib.ExitStack() as cleanup,
  ):
    checked = workdir_lib.check(experiment, workdir, allow_config_change)
    outcome = _train(*checked, workdir, reference, stop, cleanup, start_time)
  is_complete = outcome.step == experiment.length.num_steps and outcome.metrics
  # The process may have been killed between the last step and the curves.
  curves = os.path.join(workdir, workdir_lib.CURVES_FILE)
  is_drawn = outcome.was_complete and os.path.exists(curves)
  if draw and is_complete and not is_drawn and jax.process_index() == 0:
    try:
      draw(workdir)
    except OSError as error:  # A complete run must not fail over a plot.
      print(f'warning: {curves} was not written: {error}', file=sys.stderr)
  return outcome


def _train(
  is_begun: bool,
  experiment: Experiment,
  changed: Sequence[str],
  workdir: str,
  reference: Reference | None,
  stop: StopSignal,
  cleanup: contextlib.ExitStack,
  start_time: float,
) -> Outcome:
  """Trains a run that `workdir_lib.check` has accepted; see `train`."""
  checkpoints, state, initial = None, None, None
  if is_begun:
    if outcome := _complete(experiment, workdir):
      return outcome
    files.check_writable(workdir)
    checkpoints = _open(experiment, workdir, cleanup)
    with stop.exit_on_signal():
      state = checkpoints.restore_newest(experiment.abstract_state())
    if state is None:
      workdir_lib.check_not_lost(workdir, experiment.config['save_every_steps'])
    elif outcome := _complete_with(checkpoints, experiment):
      return outcome
  if experiment.config['init_from'] is not None and state is None:
    initial, experiment = open_weights(experiment)
  first_step = 0 if state is None else int(state.step)
  warnings = DataWarnings(experiment.train_reader.max_bad_images)
  for folder in (workdir, os.path.join(workdir, FOLDER)):
    files.check_writable(folder)
  if experiment.config['data.cache'] is not None:
    with stop.exit_on_signal():
      experiment = _fill_caches(experiment, warnings)
  batches = _start_reading(experiment, first_step, warnings)
  cleanup.callback(batches.close)
  if stop.received and jax.process_count() == 1:
    return Outcome(step=first_step, metrics=None, signal=stop.received)
  checkpoints = checkpoints or _open(experiment, workdir, cleanup)
  if changed or not is_begun:
    workdir_lib.write_shared_config(workdir, experiment)
  if state is None:
    with stop.exit_on_signal():
      state = experiment.create_state()
      state = initial.apply(state) if initial else state
  jax.monitoring.record_event('/resnet/state')
  loop = Loop(
    experiment,
    workdir,
    checkpoints,
    batches,
    first_step,
    reference,
    stop,
    warnings,
  )
  cleanup.callback(loop.close)
  lines = [*_describe(experiment, first_step), *changed]
  if initial:
    lines.append(initial.describe())
  if reference:
    lines.append(reference.describe(experiment.config))
  return _run_loop(loop, state, lines, start_time)


def _run_loop(
  loop: Loop, state: TrainState, lines: Sequence[str], start_time: float
) -> Outcome:
  """Prints `lines` and runs the loop; records when it started and ended."""
  for line in lines:
    loop.progress.say(line)
  if jax.process_index() == 0:
    devices = loop.experiment.sharding.mesh.devices.flatten().tolist()
    record_start(loop.workdir, step=loop.first_step, devices=devices)
  outcome = loop.run(state, start_time)
  if jax.process_index() == 0:
    record_end(loop.workdir, step=outcome.step)
  return outcome


def _open(
  experiment: Experiment, workdir: str, cleanup: contextlib.ExitStack
) -> Checkpoints:
  """Creates and locks the workdir; opens its checkpoints for writing."""
  with files.writing(f'--workdir={workdir}'):
    os.makedirs(workdir, exist_ok=True)
  if jax.process_index() == 0:
    cleanup.enter_context(files.lock(workdir))
  checkpoints = Checkpoints(workdir, keep=experiment.config['keep_checkpoints'])
  cleanup.callback(checkpoints.close)
  return checkpoints


def _complete(experiment: Experiment, workdir: str) -> Outcome | None:
  """Returns the outcome of a run that is complete and intact, or None."""
  if not os.path.isdir(os.path.join(workdir, FOLDER)):
    return None
  try:
    checkpoints = Checkpoints(workdir)
    outcome = _complete_with(checkpoints, experiment)
    if outcome:
      checkpoints.restore(outcome.step, experiment.abstract_state())
    return outcome
  except DamagedError:  # Training is repeated from an earlier checkpoint.
    return None


def _complete_with(
  checkpoints: Checkpoints, experiment: Experiment
) -> Outcome | None:
  """Returns the outcome if the last step is saved with its evaluation."""
  step = checkpoints.latest_step()
  if step is None or step < experiment.length.num_steps:
    return None
  if metrics := checkpoints.metrics(step):
    return Outcome(step=step, metrics=metrics, was_complete=True)
  return None


def _fill_caches(experiment: Experiment, warnings: DataWarnings) -> Experiment:
  """Puts the images of both splits on every device; prints the progress."""
  count, start = sum(len(x.source) for x in experiment.readers), time.time()
  is_first = jax.process_index() == 0
  with ProgressBar('read', count, is_shown=is_first) as bar:
    experiment = experiment.cached(warnings, bar.update)
  if is_first:
    size = sum(x.num_bytes for x in experiment.readers) / 1e6
    print(
      f'{count:,} images ({size:,.1f} MB) are on each device, read in'
      f' {time.time() - start:.1f} s.'
    )
  return experiment


def _start_reading(
  experiment: Experiment, first_step: int, warnings: DataWarnings
) -> DeviceLoader:
  """Reads the first batches of both splits, and starts to read ahead.

  Raises:
    InputError: a record is broken.
  """
  loader, num_bytes = experiment.loader, 0  # 0: only TensorBoard's locks.
  if loader.num_workers:  # Both splits hold batches during an evaluation.
    sizes = (reader.num_batch_bytes for reader in experiment.readers)
    num_bytes = loader.max_batches * sum(sizes)
  check_shared_memory(num_bytes)
  batches = experiment.load(
    experiment.train_reader,
    warnings,
    first_step=first_step,
    num_steps=experiment.length.num_steps,
  )
  first_eval_batch = experiment.eval_reader(0)
  if isinstance(first_eval_batch, InputError):
    raise first_eval_batch
  if first_step < experiment.length.num_steps:
    batches.start()
  jax.monitoring.record_event('/resnet/data')
  return batches


def _describe(experiment: Experiment, first_step: int) -> list[str]:
  """Returns lines about a run and about fields that have no effect."""
  model = experiment.config['model.name']
  train = experiment.train_reader.source
  eval_ = experiment.eval_reader.source
  devices = experiment.sharding.mesh.devices.flat
  num_steps = experiment.length.num_steps
  what = f'steps {first_step + 1} to {num_steps}'
  if first_step == num_steps:
    what = 'the last evaluation'
  parts = [
    f'{"Continuing" if first_step else "Training"} {model} on {train.name}'
    f' ({len(train):,} {train.split}, {len(eval_):,} {eval_.split} images)',
    f'{what}, batch {experiment.length.batch_size}',
    f'{len(devices)} x {devices[0].device_kind}',
  ]
  if len(experiment.sizes.starts) > 1:
    for start, size in experiment.sizes.starts:
      parts.append(f'{size} pixels from step {start + 1}')
  return [', '.join(parts), *fields.notices(experiment.config)]
