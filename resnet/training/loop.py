"""The training run.

The order within an iteration is a contract:

  batch, step, log, evaluate, save, stop

A checkpoint of step s is written after everything else that is due at s, so a
run that goes on from it neither repeats nor forgets a line or an evaluation.

The host is at most MAX_STEPS_IN_FLIGHT steps ahead of the device: enough that
the device never waits for it, and little enough that its clock tells the
device's speed. Metrics are read when their step is done, while later steps run.
"""

import collections
from collections.abc import Mapping
import dataclasses
import math
import os
import signal
import sys
import time
from typing import Any

import jax

from resnet.data.loader import DeviceLoader, read_ahead
from resnet.data.notes import Notes
from resnet.errors import InputError, RunError
from resnet.experiment import FORMER_VALUES, FREE_FIELDS, Experiment
from resnet.training import metrics as metrics_lib
from resnet.training import workdir as workdir_lib
from resnet.training.checkpoint import FOLDER, Checkpoints
from resnet.training.evaluate import describe, evaluate
from resnet.training.initialize import open_weights
from resnet.training.meter import Meter
from resnet.training.reference import Reference
from resnet.training.starts import record_end, record_start
from resnet.training.state import TrainState
from resnet.training.step import jit_steps
from resnet.training.stop import StopSignal
from resnet.training.writer import MetricsWriter, Progress

MAX_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a run ended.

  Attributes:
    step: finished updates.
    metrics: of the last evaluation, if it was at `step`.
    images_per_second: of training alone, this time; None: no interval ended.
    signal: that stopped the run, or None.
    was_complete: there was nothing left to do.
  """

  step: int
  metrics: Mapping[str, float] | None
  images_per_second: float | None = None
  signal: int | None = None
  was_complete: bool = False


def run(
  experiment: Experiment,
  workdir: str,
  start_time: float,
  reference: Reference | None = None,
) -> int:
  """Trains, prints how it ended, returns the exit code; see `train`."""
  outcome = train(
    experiment, workdir, start_time=start_time, reference=reference
  )
  num_steps = experiment.length.num_steps
  if outcome.signal is not None:
    saved = 'it is saved' if outcome.step else 'there was nothing to save'
    print(
      f'Stopped by {signal.Signals(outcome.signal).name} after step'
      f' {outcome.step} of {num_steps}; {saved}. The same command goes on.'
    )
    return 128 + outcome.signal
  if outcome.was_complete:
    print(f'The run in {workdir} is complete: nothing to do.')
  table = {'steps': f'{num_steps:,}'}
  if outcome.metrics:
    table |= {
      'eval top-1': f'{outcome.metrics["eval/top1"]:.4f}',
      'eval top-5': f'{outcome.metrics["eval/top5"]:.4f}',
      'eval loss': f'{outcome.metrics["eval/loss"]:.4f}',
    }
  if outcome.images_per_second:
    table['images/s'] = f'{outcome.images_per_second:,.0f}'
  if not outcome.was_complete:
    table['wall time'] = f'{time.time() - start_time:.1f} s'
  table['files'] = workdir
  width = max(map(len, table))
  print(
    *(f'  {name:<{width}}  {text}' for name, text in table.items()), sep='\n'
  )
  return 0


def train(
  experiment: Experiment,
  workdir: str,
  *,
  start_time: float,
  reference: Reference | None = None,
) -> Outcome:
  """Trains in `workdir`, from its newest checkpoint if it has one.

  Args:
    experiment: the run.
    workdir: is made if need be; nothing is written before the first batches
      of both splits were read and found good.
    start_time: time.time() at which the program began.
    reference: where the run leaves its band, a warning is shown.

  Raises:
    InputError: the workdir is of another config or cannot be written, or a
      record is broken.
    RunError: data workers died; in training, what was learned is saved.
  """
  with StopSignal() as stop:
    return _train(experiment, workdir, stop, start_time, reference)


def _train(
  experiment: Experiment,
  workdir: str,
  stop: StopSignal,
  start_time: float,
  reference: Reference | None,
) -> Outcome:
  num_steps = experiment.length.num_steps
  saved, experiment = _check_workdir(experiment, workdir)
  checkpoints = _open_checkpoints(experiment, workdir) if saved else None
  first_step = (checkpoints and checkpoints.latest_step()) or 0
  if checkpoints and first_step >= num_steps:
    metrics = checkpoints.metrics(first_step)
    _finish(workdir)
    return Outcome(step=first_step, metrics=metrics, was_complete=True)
  initial = None
  if experiment.init_from is not None and not first_step:
    initial, experiment = open_weights(experiment)
  for folder in (workdir, os.path.join(workdir, FOLDER)):
    workdir_lib.check_writable(folder)

  notes = Notes(experiment.train_reader.max_bad_images)
  batches = DeviceLoader(
    read_ahead(
      experiment.train_reader,
      experiment.loader,
      first_step=first_step,
      num_steps=num_steps,
      notes=notes,
    ),
    experiment.sharding.batch,
    notes,
  )
  first_eval_batch = experiment.eval_reader(0)
  if isinstance(first_eval_batch, InputError):
    raise first_eval_batch
  batches.start()
  if stop.received:
    batches.close()
    return Outcome(step=first_step, metrics=None, signal=stop.received)
  if checkpoints is None:
    workdir_lib.create(workdir, experiment.config, experiment.derived())
    checkpoints = _open_checkpoints(experiment, workdir)
  if jax.process_index() == 0:
    devices = experiment.sharding.mesh.devices.flatten().tolist()
    record_start(workdir, step=first_step, devices=devices)
  if first_step:
    state = checkpoints.restore(first_step, experiment.abstract_state())
  else:
    state = experiment.create_state()
    state = initial.apply(state) if initial else state
  run = _Run(experiment, workdir, checkpoints, first_step, reference, notes)
  try:
    run.progress.say(_describe(experiment, first_step))
    if initial:
      run.progress.say(initial.describe())
    if reference:
      run.progress.say(reference.describe(experiment.config))
    outcome = run.loop(state, batches, stop, start_time)
  finally:
    batches.close()
    run.close()
  if jax.process_index() == 0:
    record_end(workdir, step=outcome.step)
  if outcome.step == num_steps:
    _finish(workdir)
  return outcome


def _finish(workdir: str) -> None:
  """Draws the curves, if a kill after the last step has not let them be."""
  # Not at the top: a run need not wait for matplotlib to begin.
  from resnet.reporting import curves

  exists = os.path.exists(os.path.join(workdir, curves.CURVES_FILE))
  if not exists and jax.process_index() == 0:
    try:
      curves.save_curves(workdir)
    except OSError as error:  # A picture is no reason to fail a finished run.
      print(f'No {curves.CURVES_FILE}: {error}', file=sys.stderr)


def _check_workdir(
  experiment: Experiment, workdir: str
) -> tuple[bool, Experiment]:
  """Returns whether a run was begun in `workdir`; it must be this one.

  And the experiment, with the statistics of that run where it began with the
  weights of another: their source may be gone by now.
  """
  saved = workdir_lib.read_config(workdir)
  if saved is None:
    if os.path.isdir(os.path.join(workdir, FOLDER)):
      raise InputError(
        f'{workdir} has checkpoints but no config.json, so nobody can tell of'
        ' what run they are: give another --workdir.'
      )
    return False, experiment
  if experiment.init_from is not None:
    experiment = experiment.with_statistics_of(saved['derived'])
  config = {**FORMER_VALUES, **saved['config']}
  for there, now, ignore in (
    (config, experiment.config, FREE_FIELDS),
    # The data may have been prepared anew since, under the same name.
    (saved['derived'], experiment.derived(), ()),
  ):
    workdir_lib.check_same_config(workdir, there, now, ignore=ignore)
  return True, experiment


def _open_checkpoints(experiment: Experiment, workdir: str) -> Checkpoints:
  return Checkpoints(workdir, keep=experiment.keep_checkpoints)


def _describe(experiment: Experiment, first_step: int) -> str:
  model = experiment.config['model.name']
  train, eval_ = (
    reader.source
    for reader in (experiment.train_reader, experiment.eval_reader)
  )
  devices = experiment.sharding.mesh.devices.flat
  return (
    f'{"Continuing" if first_step else "Training"} {model} on {train.name}'
    f' ({len(train):,} {train.split}, {len(eval_):,} {eval_.split} images),'
    f' steps {first_step + 1} to {experiment.length.num_steps},'
    f' batch {experiment.length.batch_size},'
    f' {len(devices)} x {devices[0].device_kind}'
  )


class _Run:
  """The moving parts of a run, and the loop that moves them."""

  def __init__(
    self,
    experiment: Experiment,
    workdir: str,
    checkpoints: Checkpoints,
    first_step: int,
    reference: Reference | None,
    notes: Notes,
  ):
    self.experiment = experiment
    self.reference = reference
    self.notes = notes
    self.checkpoints = checkpoints
    self.first_step = first_step
    self.steps = jit_steps(experiment.task, experiment.sharding)
    self.writer = None
    if jax.process_index() == 0:
      self.writer = MetricsWriter(workdir, first_step=first_step)
    self.progress = Progress(
      first_step=first_step, num_steps=experiment.length.num_steps
    )
    best_step = checkpoints.best_step()
    best = checkpoints.metrics(best_step) if best_step is not None else None
    self.best_top1 = best['eval/top1'] if best else -math.inf
    # Steps that the device was told to do: (step, its metrics, broken images
    # met up to its batch).
    self.in_flight: collections.deque[tuple[int, Any, int]]
    self.in_flight = collections.deque()
    self.num_bad_logged = 0

  def loop(
    self,
    state: TrainState,
    batches: DeviceLoader,
    stop: StopSignal,
    start_time: float,
  ) -> Outcome:
    """Runs to the end, or to a signal."""
    length = self.experiment.length
    meter = Meter(length, batches, self.first_step)
    step, saved_step, evaluation = self.first_step, self.first_step, None
    while step < length.num_steps:
      try:
        batch = next(batches)
      except (InputError, RunError):
        self.say_notes()
        self.keep(state, step, saved_step, meter)
        raise
      self.say_notes()
      state, metrics = self.steps.train(state, batch)
      step += 1
      is_last = step == length.num_steps
      if step == self.first_step + 1:
        jax.block_until_ready(metrics)
        seconds = time.time() - start_time
        self.progress.say(f'First step done {seconds:.1f} s after the start.')
        meter.start(step)

      self.in_flight.append((step, metrics, batches.num_left_out))
      self.finish_steps(meter, leave=MAX_STEPS_IN_FLIGHT)

      evaluation = None
      if self.experiment.is_eval_step(step) or is_last:
        with meter.paused(self.finish_steps):
          evaluation = self.evaluate(state)
          self.write(step, evaluation)
          self.progress.say(describe(step, evaluation))
          self.compare(step, evaluation)

      is_best = evaluation and evaluation['eval/top1'] > self.best_top1
      is_due = step % self.experiment.save_every_steps == 0
      if is_best or is_due or is_last or stop.received:
        with meter.paused(self.finish_steps):
          self.save(state, evaluation)
          saved_step = step

      if stop.received:
        break
    self.checkpoints.finish(expected_step=saved_step)
    return Outcome(
      step=step,
      metrics=evaluation,
      images_per_second=meter.mean,
      signal=stop.received,
    )

  def keep(
    self, state: TrainState, step: int, saved_step: int, meter: Meter
  ) -> None:
    """Saves what is not saved yet, before the run ends by an error."""
    self.finish_steps(meter)
    if step > saved_step:
      self.save(state, None)
      self.checkpoints.finish(expected_step=step)

  def finish_steps(self, meter: Meter, *, leave: int = 0) -> None:
    """Waits until at most `leave` steps are in flight; logs what is due."""
    while len(self.in_flight) > leave:
      step, metrics, num_bad = self.in_flight.popleft()
      jax.block_until_ready(metrics)
      self.progress.advance()
      is_last = step == self.experiment.length.num_steps
      if step % self.experiment.task.log_every_steps == 0 or is_last:
        self.checkpoints.check()
        self.log(step, metrics, num_bad, meter)

  def evaluate(self, state: TrainState) -> dict[str, float]:
    try:
      return evaluate(self.experiment, self.steps, state, self.notes)
    finally:
      self.say_notes()

  def say_notes(self) -> None:
    """Shows what happened to the data since the last call."""
    for line in self.notes.take():
      self.progress.say(line)

  def log(self, step: int, metrics: Any, num_bad: int, meter: Meter) -> None:
    """Writes and shows the metrics of the interval that ends with `step`."""
    metrics = dict(metrics)
    learning_rate = float(metrics.pop('learning_rate'))
    means = metrics_lib.means(metrics)
    values = {
      'train/loss': means['loss'],
      'train/top1': means['top1'],
      'learning_rate': learning_rate,
      **meter.interval(step),
    }
    if self.experiment.train_reader.max_bad_images is not None:
      values['bad_images'] = num_bad - self.num_bad_logged
      self.num_bad_logged = num_bad
    self.write(step, values)
    epoch = self.experiment.epoch(step)
    self.progress.metrics(step, epoch, values, meter.seconds_left(step))
    self.compare(step, values)

  def compare(self, step: int, values: Mapping[str, float]) -> None:
    """Warns of values outside of the reference's band."""
    if self.reference:
      epoch = self.experiment.epoch(step)
      for line in self.reference.warnings(step, epoch, values):
        self.progress.say(line)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self.writer:
      self.writer.write(step, self.experiment.epoch(step), values)

  def save(
    self, state: TrainState, evaluation: dict[str, float] | None
  ) -> None:
    if self.writer:
      self.writer.sync()  # No checkpoint is ahead of its metrics.
    if evaluation:
      self.best_top1 = max(self.best_top1, evaluation['eval/top1'])
    self.checkpoints.save(state, evaluation)

  def close(self) -> None:
    self.progress.close()
    if self.writer:
      self.writer.close()
    self.checkpoints.close()
