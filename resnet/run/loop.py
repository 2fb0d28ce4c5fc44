"""The training loop.

The order within an iteration is a contract:

  batch, step, log, evaluate, save, stop

A checkpoint of step s is written after everything else that is due at s, so a
run that goes on from it neither repeats nor forgets a line or an evaluation.
(But for a signal during an evaluation: then s is saved without it, and the run
that goes on makes it first.)

The host is at most MAX_STEPS_IN_FLIGHT steps ahead of the device: enough that
the device never waits for it, and little enough that its clock tells the
device's speed. Metrics are read when their step is done, while later steps run.
"""

import collections
from collections.abc import Mapping
import dataclasses
import math
import time
from typing import Any

import jax

from resnet.data.host.loader import DeviceLoader
from resnet.data.host.warnings import Notes
from resnet.errors import InputError, RunError
from resnet.evaluation.evaluate import describe, evaluate, sum_over_processes
from resnet.experiment import Experiment
from resnet.run.bad_steps import BadSteps
from resnet.run.checkpoint import Checkpoints, SaveError
from resnet.run.metrics_file import MetricsWriter, Progress
from resnet.run.programs import Programs
from resnet.run.reference import Reference
from resnet.run.signals import AgreedSignal, StopSignal
from resnet.run.watchdog import Watchdog
from resnet.training import metrics as metrics_lib
from resnet.training.meter import Meter
from resnet.training.state import TrainState
from resnet.weights import score

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


class Loop:
  """The moving parts of a run, and the loop that moves them."""

  def __init__(
    self,
    experiment: Experiment,
    workdir: str,
    checkpoints: Checkpoints,
    first_step: int,
    reference: Reference | None,
    stop: StopSignal,
    notes: Notes,
  ):
    self.experiment = experiment
    self.reference = reference
    self.notes = notes
    self.checkpoints = checkpoints
    self.first_step = self.saved_step = first_step
    self.stop = stop
    self.signal = AgreedSignal(stop, experiment.sharding.batch)
    self.programs = Programs(experiment, first_step=first_step)
    self.writer = None
    if jax.process_index() == 0:
      self.writer = MetricsWriter(workdir, first_step=first_step)
    self.bad_steps = BadSteps(experiment, workdir, first_step=first_step)
    self.watchdog = Watchdog(workdir, seconds=experiment.watchdog_seconds)
    self.progress = Progress(
      first_step=first_step,
      num_steps=experiment.length.num_steps,
      process_index=jax.process_index(),
    )
    best_step = checkpoints.best_step()
    best = checkpoints.metrics(best_step) if best_step is not None else None
    self.best_score = score(best) if best else -math.inf
    # Of a save that went wrong, until one has gone well.
    self.save_error: SaveError | None = None
    # Steps that the device was told to do: (step, its metrics, the number of
    # broken images met until then).
    self.in_flight: collections.deque[tuple[int, Any, int]] = (
      collections.deque()
    )
    self.num_bad_logged = 0

  def run(
    self, state: TrainState, batches: DeviceLoader, start_time: float
  ) -> Outcome:
    """Runs to the end, or to a signal."""
    length = self.experiment.length
    meter = Meter(length, batches, self.first_step)
    step, evaluation = self.first_step, self.evaluate_late(state)
    while (
      step < length.num_steps
      and not self.signal.poll()
      and self.wait_for_program(step, meter)
    ):
      self.watchdog.watch(f'waiting for batch {step + 1}')
      try:
        batch = next(batches)
      except (InputError, RunError):
        self.keep(state, step, meter)
        raise
      finally:
        self.say_notes()
      if step == self.first_step:
        state, metrics = self.first(state, batch, start_time)
        meter.start(step + 1)
      else:
        state, metrics = self.programs.train(step)(state, batch)
      step += 1
      is_last = step == length.num_steps
      self.in_flight.append((step, metrics, batches.num_left_out))
      self.finish_steps(meter, leave=MAX_STEPS_IN_FLIGHT)

      evaluation = None
      if self.experiment.is_eval_step(step) or is_last:
        with meter.paused(self.finish_steps):
          try:
            evaluation = self.evaluate(state, step)
          except (InputError, RunError):
            self.keep(state, step, meter)
            raise

      is_best = evaluation and score(evaluation) > self.best_score
      is_due = step % self.experiment.save_every_steps == 0
      is_due |= self.save_error is not None
      if is_best or is_due or is_last or self.signal.number:
        with meter.paused(self.finish_steps):
          self.save(state, step, evaluation)
    if step > self.saved_step:  # The signal came after the last look at it.
      with meter.paused(self.finish_steps):
        self.save(state, step, evaluation)
    self.finish(state, step, evaluation)
    return Outcome(
      step=step,
      metrics=evaluation,
      images_per_second=meter.mean,
      signal=self.signal.number,
    )

  def first(
    self, state: TrainState, batch: Any, start_time: float
  ) -> tuple[TrainState, Any]:
    """Compiles and makes the first step; says how long all took until then."""
    self.watchdog.rest()
    with self.stop.at_once():
      state, metrics = self.programs.steps.train(state, batch)
      jax.block_until_ready(metrics)
    jax.monitoring.record_event('/resnet/first_step')
    seconds = time.time() - start_time
    self.progress.say(f'First step done {seconds:.1f} s after the start.')
    self.checkpoints.compile(state)
    with self.stop.at_once():
      self.programs.compile_later_sizes()
    return state, metrics

  def wait_for_program(self, step: int, meter: Meter) -> bool:
    """Waits for the compiler at a new size; False: a signal came first."""
    if self.programs.is_ready(step):
      return True
    with meter.paused(self.finish_steps):
      size = self.experiment.sizes.at(step)
      self.progress.say(
        f'Step {step + 1}, of {size} pixels, is not compiled yet.'
      )
      self.watchdog.rest()
      return self.programs.wait(step, self.stop)

  def evaluate(self, state: TrainState, step: int) -> dict[str, float] | None:
    """Evaluates, writes and shows; None: a signal came before the end."""
    try:
      evaluation = evaluate(
        self.experiment,
        self.programs.steps,
        state,
        self.notes,
        stop=self.signal.poll,
        watchdog=self.watchdog,
      )
    finally:
      self.say_notes()
    if evaluation:
      if not (self.writer and self.writer.has_evaluation(step)):
        self.write(step, evaluation)
      self.progress.say(describe(step, evaluation))
      self.compare(step, evaluation)
    return evaluation

  def say_notes(self) -> None:
    """Shows what happened to the data since the last call."""
    for line in self.notes.take():
      self.progress.say_anywhere(line)

  def evaluate_late(self, state: TrainState) -> dict[str, float] | None:
    """Makes the evaluation that was cut off, if there is one."""
    step = self.first_step
    is_due = self.experiment.is_eval_step(step)
    is_due |= step == self.experiment.length.num_steps
    if not step or not is_due or self.checkpoints.metrics(step):
      return None
    evaluation = self.evaluate(state, step)
    if evaluation:
      self.best_score = max(self.best_score, score(evaluation))
      self.watchdog.watch(f'saving step {step}')
      if self.writer:
        self.writer.sync()
      self.checkpoints.replace(state, evaluation, self.progress.say)
    return evaluation

  def finish_steps(self, meter: Meter, *, leave: int = 0) -> None:
    """Waits until at most `leave` steps are in flight; logs what is due."""
    while len(self.in_flight) > leave:
      step, metrics, num_bad = self.in_flight.popleft()
      jax.block_until_ready(metrics)
      self.watchdog.step_done(f'training after step {step}')
      self.progress.advance()
      metrics = dict(metrics)
      for line in self.bad_steps.check(
        step, int(metrics.pop('skipped_in_row'))
      ):
        self.progress.say(line)
      is_last = step == self.experiment.length.num_steps
      if step % self.experiment.task.log_every_steps == 0 or is_last:
        self.log(step, metrics, num_bad, meter)
        try:
          self.checkpoints.check()
        except SaveError as error:
          if jax.process_count() > 1:  # The others know nothing of it.
            raise
          self.save_error = error

  def log(self, step: int, metrics: Any, num_bad: int, meter: Meter) -> None:
    """Writes and shows the metrics of the interval that ends with `step`."""
    learning_rate = float(metrics.pop('learning_rate'))
    skipped_steps = int(metrics.pop('skipped_steps'))
    means = metrics_lib.means(metrics)
    values = {
      'train/loss': means['loss'],
      'train/top1': means['top1'],
      'learning_rate': learning_rate,
      **({'skipped_steps': skipped_steps} if skipped_steps else {}),
      **meter.interval(step),
    }
    if self.experiment.train_reader.max_bad_images is not None:
      values['bad_images'] = sum_over_processes(num_bad - self.num_bad_logged)
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
    self, state: TrainState, step: int, evaluation: dict[str, float] | None
  ) -> None:
    """Begins to save; what is saved is never ahead of its metrics."""
    self.watchdog.watch(f'saving step {step}')
    if self.writer:
      self.writer.sync()
    if evaluation:
      self.best_score = max(self.best_score, score(evaluation))
    try:
      if self.save_error:
        raise self.save_error
      self.checkpoints.save(state, evaluation)
    except SaveError as error:  # It may be that of the save before.
      if jax.process_count() > 1:
        raise
      self.checkpoints.save_now(state, evaluation, error, self.progress.say)
    self.saved_step, self.save_error = step, None

  def keep(self, state: TrainState, step: int, meter: Meter) -> None:
    """Saves what is not saved yet, before the run ends by an error.

    (Not where there are several processes: the others have gone on.)
    """
    if jax.process_count() > 1:
      return
    self.finish_steps(meter)
    if step > self.saved_step:
      self.save(state, step, None)
      self.finish(state, step, None)

  def finish(
    self, state: TrainState, step: int, evaluation: dict[str, float] | None
  ) -> None:
    """Waits until the last checkpoint is on disk."""
    if not self.saved_step:  # A signal came before the first step.
      return
    self.watchdog.watch(f'saving step {step}')
    try:
      self.checkpoints.finish(expected_step=self.saved_step)
    except SaveError as error:
      if jax.process_count() > 1:
        raise
      self.checkpoints.save_now(state, evaluation, error, self.progress.say)
    self.watchdog.rest()

  def close(self) -> None:
    self.programs.close()
    self.bad_steps.close()
    self.watchdog.close()
    self.progress.close()
    if self.writer:
      self.writer.close()
