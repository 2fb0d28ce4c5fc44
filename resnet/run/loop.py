"""The training loop.

The order within an iteration is a contract:

  batch, step, log, evaluate, save, stop

The checkpoint of a step is saved after everything else that is due at the step,
so that a resumed run neither repeats nor skips a log line or an evaluation. (If
a signal interrupts an evaluation, the resumed run evaluates first.)

Each call makes one update or, if nothing is due before the last of them,
`steps_per_call` updates; what is due and a signal are dealt with after it.
The host runs at most MAX_CALLS_IN_FLIGHT calls ahead: enough that the device
never waits, and few enough that the host's clock measures the device's speed.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
import time
from typing import Any

import jax
import numpy as np

from resnet.checkpoint_folder import score
from resnet.data.host.loader import DeviceLoader
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError, RunError
from resnet.evaluation.evaluate import describe, evaluate, sum_over_processes
from resnet.experiment import Experiment
from resnet.run.bad_steps import BadSteps
from resnet.run.checkpoint import Checkpoints, SaveError
from resnet.run.metrics_file import MetricsWriter, Progress
from resnet.run.reference import Reference
from resnet.run.stopping import AgreedSignal, Outcome, StopSignal, Watchdog
from resnet.training import metrics as metrics_lib
from resnet.training.meter import Meter
from resnet.training.state import TrainState
from resnet.training.step import jit_steps

MAX_CALLS_IN_FLIGHT = 2
# Metrics by name; None: no evaluation was due, or a signal interrupted it.
Evaluation = dict[str, float] | None


@dataclasses.dataclass
class Loop:
  """Trains, logs, evaluates and saves, from a first step to the last."""

  experiment: Experiment
  workdir: str
  checkpoints: Checkpoints
  batches: DeviceLoader
  first_step: int
  reference: Reference | None
  stop: StopSignal
  warnings: DataWarnings

  def __post_init__(self):
    experiment, first_step = self.experiment, self.first_step
    self.config = experiment.config
    self.meter = Meter(experiment.length, self.batches, first_step)
    self.saved_step = first_step
    self.signal = AgreedSignal(self.stop, experiment.sharding.batch)
    self.size = experiment.sizes.at(first_step)
    self.steps = jit_steps(experiment.at(first_step).task, experiment.sharding)
    self.train = self.steps.train
    self.per_call = self.config['steps_per_call']
    self.writer = None
    if jax.process_index() == 0:
      self.writer = MetricsWriter(
        self.workdir, first_step=first_step, config=self.config
      )
    self.bad_steps = BadSteps(experiment, self.workdir, first_step=first_step)
    seconds = self.config['watchdog_seconds']
    self.watchdog = Watchdog(self.workdir, seconds=seconds)
    self.progress = Progress(
      first_step=first_step, num_steps=experiment.length.num_steps
    )
    best_step = self.checkpoints.best_step()
    best = best_step is not None and self.checkpoints.metrics(best_step)
    self.best_score = score(best) if best else -math.inf
    # The last failed save; cleared by the next success.
    self.save_error: SaveError | None = None
    # Dispatched calls: (last step, metrics, number of broken images so far).
    self.in_flight = collections.deque[tuple[int, Any, int]]()
    self.num_bad_logged = 0

  def run(self, state: TrainState, start_time: float) -> Outcome:
    """Trains until the last step or a signal."""
    length = self.experiment.length
    step, evaluation = self.first_step, self.evaluate_late(state)
    while step < length.num_steps and not self.signal.poll():
      self.watchdog.watch(f'waiting for batch {step + 1}')
      count = self.experiment.updates_in_call(step, self.first_step)
      with self.keeping(state, step):
        batch = self.batches.take(count)
      if step == self.first_step:
        state, metrics = self.run_first_step(state, batch, start_time)
      else:
        if self.experiment.sizes.at(step) != self.size:
          with self.meter.paused(self.finish_steps):
            self.compile(state, batch, step, evaluation)
          if self.signal.number:
            break
        train = self.train if count == 1 else self.train_many
        state, metrics = train(state, batch)
      step += count
      self.in_flight.append((step, metrics, self.batches.num_left_out))
      self.finish_steps(leave=MAX_CALLS_IN_FLIGHT)
      evaluation = None
      if self.experiment.is_eval_step(step):
        with self.meter.paused(self.finish_steps):
          evaluation = self.evaluate(state, step)
      is_best = evaluation and score(evaluation) > self.best_score
      is_due = self.experiment.is_due('save_every_steps', step)
      if is_best or is_due or self.save_error or self.signal.number:
        with self.meter.paused(self.finish_steps):
          self.save(state, step, evaluation)
    self.finish_steps()
    self.finish(state, step, evaluation)
    return Outcome(
      step=step,
      metrics=evaluation,
      images_per_second=self.meter.mean,
      signal=self.signal.number,
    )

  def run_first_step(
    self, state: TrainState, batch: Any, start_time: float
  ) -> tuple[TrainState, Any]:
    """Compiles and runs the first step."""
    self.watchdog.watch(None)
    with self.stop.exit_on_signal():
      self.train_many = self.steps.compile_call(state, batch, self.per_call)
      state, metrics = self.train(state, batch)
      jax.block_until_ready(metrics)
    jax.monitoring.record_event('/resnet/first_step')
    self.progress.say(
      f'First step done {time.time() - start_time:.1f} s after the start.'
    )
    self.checkpoints.compile(state)
    self.meter.start(self.first_step + 1)
    return state, metrics

  def compile(
    self, state: TrainState, batch: Any, step: int, evaluation: Evaluation
  ) -> None:
    """Saves, then compiles for the next image size unless a signal arrived."""
    self.finish(state, step, evaluation)
    if self.signal.number:
      return
    run = self.experiment.at(step)
    self.size = run.sizes.at(step)
    self.progress.say(f'Compiling for images of {self.size} pixels.')
    with self.stop.exit_on_signal():
      steps = jit_steps(run.task, run.sharding)
      self.train_many = steps.compile_call(state, batch, self.per_call)
      self.train = steps.train.lower(state, batch).compile()

  def evaluate(self, state: TrainState, step: int) -> Evaluation:
    """Evaluates, prints and writes the metrics; see `Evaluation`."""
    with self.keeping(state, step):
      evaluation = evaluate(
        self.experiment,
        self.steps,
        state,
        self.warnings,
        stop=self.signal.poll,
        watch=self.watchdog.watch,
        on_confusion=functools.partial(self.write_confusion, step),
      )
    if evaluation:
      self.progress.say(describe(step, evaluation))
      self.write(step, evaluation)
    return evaluation

  def evaluate_late(self, state: TrainState) -> Evaluation:
    """Repeats the restored step's evaluation if a signal interrupted it."""
    step = self.first_step
    is_due = step and self.experiment.is_eval_step(step)
    if not is_due or self.checkpoints.metrics(step):
      return None
    if evaluation := self.evaluate(state, step):
      self.best_score = max(self.best_score, score(evaluation))
      self.watchdog.watch(f'saving step {step}')
      if self.writer:
        self.writer.sync()
      self.checkpoints.add_metrics(step, evaluation)
    return evaluation

  def finish_steps(self, *, leave: int = 0) -> None:
    """Waits until at most `leave` calls are in flight; logs due intervals."""
    while len(self.in_flight) > leave:
      step, metrics, num_bad = self.in_flight.popleft()
      jax.block_until_ready(metrics)
      metrics = dict(metrics)
      in_row = np.atleast_1d(metrics.pop('skipped_in_row'))
      self.watchdog.step_done(f'training after step {step}')
      self.progress.advance(len(in_row))
      for bad_step, count in enumerate(in_row, start=step - len(in_row) + 1):
        if count:
          self.progress.say(self.bad_steps.record(bad_step, int(count)))
      if self.experiment.is_due('log_every_steps', step):
        self.log(step, metrics, num_bad)
        try:
          self.checkpoints.check()
        except SaveError as error:
          if jax.process_count() > 1:  # The others may not have failed.
            raise
          self.save_error = error

  def log(self, step: int, metrics: Any, num_bad: int) -> None:
    """Prints and writes the metrics of the interval that ends with `step`."""
    rate, skipped = metrics.pop('learning_rate'), metrics.pop('skipped_steps')
    means = metrics_lib.means(metrics)
    values = {
      'train/loss': means['loss'],
      'train/top1': means['top1'],
      'learning_rate': float(rate),
      **({'skipped_steps': int(skipped)} if skipped else {}),
      **self.meter.interval(step),
    }
    if self.experiment.train_reader.max_bad_images is not None:
      values['bad_images'] = sum_over_processes(num_bad - self.num_bad_logged)
      self.num_bad_logged = num_bad
    epoch = self.experiment.epoch(step)
    self.progress.metrics(step, epoch, values, self.meter.seconds_left(step))
    self.write(step, values)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a line of metrics; warns if they leave the reference's band."""
    epoch = self.experiment.epoch(step)
    is_eval = 'eval/loss' in values
    if self.writer and not (is_eval and self.writer.has_evaluation(step)):
      self.writer.write(step, epoch, values)
    if self.reference:
      for line in self.reference.warnings(step, epoch, values):
        self.progress.say(line)

  def write_confusion(self, step: int, counts: np.ndarray) -> None:
    """Writes the confusion matrix of an evaluation, [K, K]."""
    if self.writer:
      self.writer.write_confusion(step, counts)

  def save(self, state: TrainState, step: int, evaluation: Evaluation) -> None:
    """Starts a save once the metrics up to this step are on disk."""
    self.watchdog.watch(f'saving step {step}')
    if self.writer:
      self.writer.sync()
    if evaluation:
      self.best_score = max(self.best_score, score(evaluation))
    try:
      if self.save_error:
        raise self.save_error
      self.checkpoints.save(state, evaluation)
    except SaveError as error:  # This save or the previous one failed.
      self.save_again(state, evaluation, error)
    self.saved_step, self.save_error = step, None

  def save_again(
    self, state: TrainState, evaluation: Evaluation, error: SaveError
  ) -> None:
    """Retries a failed save, or raises `error` if there are other processes."""
    if jax.process_count() > 1:
      raise error
    self.progress.say(f'warning: {error} Trying again.')
    self.checkpoints.save_again(state, evaluation)

  @contextlib.contextmanager
  def keeping(self, state: TrainState, step: int) -> Iterator[None]:
    """Prints warnings after the `with` block; saves if reading data fails."""
    try:
      yield
    except (InputError, RunError):
      if jax.process_count() == 1:  # A save needs all processes.
        self.finish_steps()
        if step > self.saved_step:
          self.finish(state, step, None)
      raise
    finally:
      for line in self.warnings.take():
        self.progress.say_anywhere(line)

  def finish(
    self, state: TrainState, step: int, evaluation: Evaluation
  ) -> None:
    """Saves the step if it is not saved yet; waits until it is on disk."""
    if not step:  # A signal arrived before the first step.
      return
    if step > self.saved_step:
      self.save(state, step, evaluation)
    self.watchdog.watch(f'saving step {step}')
    try:
      self.checkpoints.finish(expected_step=self.saved_step)
    except SaveError as error:
      self.save_again(state, evaluation, error)
    self.watchdog.watch(None)

  def close(self) -> None:
    """Stops the threads and closes the files."""
    parts = (self.bad_steps, self.watchdog, self.progress, self.writer)
    for part in filter(None, parts):
      part.close()
