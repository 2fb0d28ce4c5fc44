"""`loop`: what the training loop costs, input aside."""

import argparse
import contextlib
import io
import json
import signal
import tempfile
from typing import Any

import jax

from resnet.data.host.warnings import Notes
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.files import write_atomically
from resnet.run.checkpoint import Checkpoints
from resnet.run.loop import Loop
from resnet.run.signals import StopSignal
from resnet.tools.benchmark import programs, timing
from resnet.training.step import JittedSteps, jit_steps

HELP = "main.py's loop over a batch that is on the device, against the step"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument('--rounds', type=int, default=5, help='default: 5')
  parser.add_argument(
    '--intervals',
    type=int,
    default=2,
    help='of log_every_steps in a round; default: 2',
  )
  parser.add_argument('--json', metavar='FILE', help='where to write figures')


def main(args: argparse.Namespace) -> None:
  """Measures and prints."""
  if min(args.rounds, args.intervals) < 1:
    raise InputError('--rounds and --intervals must be at least 1.')
  run = programs.resolve_here(args.config)
  count = args.intervals * run.task.log_every_steps
  if count >= run.length.num_steps:
    raise InputError(
      f'{args.intervals} intervals of log_every_steps={count // args.intervals}'
      f' are more than the {run.length.num_steps} steps of the run: take a'
      ' smaller --config.log_every_steps'
    )
  rates = _rates(run, count, args.rounds)
  result = {
    'machine': timing.machine(),
    'devices': programs.describe_devices(run),
    'network': run.config['model.name'],
    'batch_size': run.length.batch_size,
    'log_every_steps': run.task.log_every_steps,
    'save_every_steps': run.save_every_steps,
    'images_per_second': {
      name: timing.spread(values) for name, values in rates.items()
    },
    'ratio': timing.spread(timing.pair_ratios(rates['loop'], rates['step'])),
  }
  loop, ratio = result['images_per_second']['loop'], result['ratio']
  print(
    f'{result["network"]}, batch {result["batch_size"]}: the loop trains'
    f' {loop["median"]:,.1f} images/s, {ratio["median"]:.3f} times the step'
    f' alone (quartiles {ratio["low"]:.3f} to {ratio["high"]:.3f})'
  )
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


def _rates(run: Experiment, count: int, rounds: int) -> dict[str, list[float]]:
  """Returns images/s of the step alone and of the loop, in each round."""
  steps = jit_steps(run.task, run.sharding)
  batch = programs.batch_on_device(run, run.length.batch_size)
  bare = programs.timed(
    lambda state: steps.train(state, batch), run.create_state()
  )
  bare(2)  # Compiles.
  return timing.in_turn(
    {
      'step': lambda: count * run.length.batch_size / bare(count),
      'loop': lambda: _loop(run, steps, batch, count),
    },
    rounds,
  )


class _Resident:
  """In the place of a `DeviceLoader`; asks for the end of the run."""

  wait_seconds = 0.0
  num_left_out = 0

  def __init__(self, batch: Any, count: int, stop: StopSignal):
    self._batch, self._left, self._stop = batch, count, stop

  def __next__(self) -> dict[str, jax.Array]:
    self._left -= 1
    if not self._left:
      self._stop.received = signal.SIGTERM
    return self._batch


def _loop(run: Experiment, steps: JittedSteps, batch: Any, count: int) -> float:
  """Returns images/s of the loop, by its own clock.

  It stands still while a checkpoint is saved, as in any run.
  """
  with (
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as workdir,
    StopSignal() as stop,
    contextlib.ExitStack() as cleanup,
  ):
    checkpoints = Checkpoints(workdir, keep=1)
    cleanup.callback(checkpoints.close)
    loop = Loop(run, workdir, checkpoints, 0, None, stop, Notes())
    cleanup.callback(loop.close)
    loop.programs.steps = steps  # Compiled already.
    # The first step is not counted, nor what comes after the last log line.
    batches: Any = _Resident(batch, count + 1, stop)
    outcome = loop.run(run.create_state(), batches, 0.0)
  assert outcome.images_per_second
  return outcome.images_per_second
