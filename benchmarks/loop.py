"""Compares the speed of the training loop with that of its step alone.

  PYTHONPATH=. python benchmarks/loop.py --config=configs/cifar10.py:resnet20

Both train on one batch that stays on the device, so reading does not count.
"""

import contextlib
import io
import signal
import tempfile

from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.run.checkpoint import Checkpoints
from resnet.run.loop import Loop
from resnet.run.stopping import StopSignal
from resnet.tools import command
from resnet.tools.benchmark import programs, timing
from resnet.training.step import jit_steps

_INTERVALS = 2  # Rounds of log_every_steps per measurement.


def main(args):
  run = programs.resolve_here(args.config)
  count = _INTERVALS * run.task.log_every_steps
  if count >= run.length.num_steps:
    raise InputError(
      f'{_INTERVALS} intervals of log_every_steps={run.task.log_every_steps}'
      f' exceed the {run.length.num_steps} steps of the run: type a smaller'
      ' --config.log_every_steps'
    )
  steps = jit_steps(run.task, run.sharding)
  batch = programs.batch_on_device(run, 'step')
  bare = programs.timed(
    lambda state: steps.train(state, batch), run.create_state()
  )
  bare(2)  # Compiles.
  rates = timing.in_turn(
    {
      'step': lambda: count * run.length.batch_size / bare(count),
      'loop': lambda: _images_per_second(run, steps, batch, count),
    },
    args.rounds,
  )
  ratio = timing.ratio(rates['loop'], rates['step'])
  result = {
    'devices': programs.describe_devices(run),
    'network': run.config['model.name'],
    'batch_size': run.length.batch_size,
    'log_every_steps': run.task.log_every_steps,
    'save_every_steps': run.config['save_every_steps'],
    'images_per_second': {
      name: timing.spread(values) for name, values in rates.items()
    },
    'ratio': ratio,
  }
  print(
    f'{result["network"]}, batch {result["batch_size"]}: the loop trains'
    f' {result["images_per_second"]["loop"]["median"]:,.1f} images/s,'
    f' {ratio["median"]:.3f} times the step alone (quartiles'
    f' {ratio["low"]:.3f} to {ratio["high"]:.3f})'
  )
  timing.save_figures(args.json, result)


class _Resident:
  """Replaces a `DeviceLoader`; stops the run after `count` batches."""

  wait_seconds = 0.0
  num_left_out = 0

  def __init__(self, batch, count, stop):
    self._batch, self._left, self._stop = batch, count, stop

  def __next__(self):
    self._left -= 1
    if not self._left:
      self._stop.received = signal.SIGTERM
    return self._batch


def _images_per_second(run, steps, batch, count):
  """Runs the loop and returns its speed according to its meter.

  The meter is paused while a checkpoint is saved, as in any run.
  """
  with (
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as workdir,
    StopSignal() as stop,
    contextlib.closing(Checkpoints(workdir, keep=1)) as checkpoints,
    contextlib.closing(
      Loop(
        run,
        workdir,
        checkpoints,
        # The first step is not counted, nor what follows the last log line.
        _Resident(batch, count + 1, stop),
        0,
        None,
        stop,
        DataWarnings(),
      )
    ) as loop,
  ):
    loop.train = steps.train  # Already compiled.
    outcome = loop.run(run.create_state(), 0.0)
  assert outcome.images_per_second
  return outcome.images_per_second


def parser():
  result = command.ConfigParser(doc=__doc__, prog='benchmarks/loop.py')
  timing.add_arguments(result, {'rounds': 5})
  return result


if __name__ == '__main__':
  command.run(main, parser())
