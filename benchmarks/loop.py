"""Compares the speed of the training loop with that of its step alone.

  PYTHONPATH=. python benchmarks/loop.py --config=configs/cifar10.py:resnet20

Both train on one batch that stays on the device, so reading does not count.

With --config.data.cache=device the loop trains on the images of the data set,
as main.py does; the step alone still has one batch. The share of time that the
loop waits for data and the CPU time to prepare a batch are then printed too.
--config.steps_per_call=10 besides makes ten updates in a call of the loop.
"""

import contextlib
import io
import itertools
import os
import signal
import statistics
import tempfile
import time

import jax

from resnet import experiment
from resnet.data.host.loader import DeviceLoader
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.files import read_json_lines
from resnet.run.checkpoint import Checkpoints
from resnet.run.loop import Loop
from resnet.run.stopping import StopSignal
from resnet.run.workdir import METRICS_FILE
from resnet.tools import command
from resnet.tools.benchmark import programs, timing
from resnet.training.step import JittedSteps, jit_steps

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
  loop_steps, waits = steps, []
  if is_cached := args.config.data.cache is not None:
    run = experiment.resolve(args.config).at_last_size()
    run = run.cached(DataWarnings(), lambda _: None)
    loop_steps = _CompiledOnce(**vars(jit_steps(run.task, run.sharding)))

  def loop():
    batches = _load(run) if is_cached else itertools.repeat(batch)
    rate, wait = _run_loop(run, loop_steps, batches, count)
    waits.append(wait)
    return rate

  rates = timing.in_turn(
    {
      'step': lambda: count * run.length.batch_size / bare(count),
      'loop': loop,
    },
    args.rounds,
  )
  ratio = timing.ratio(rates['loop'], rates['step'])
  result = {
    'devices': programs.describe_devices(run),
    'network': run.config['model.name'],
    'batch_size': run.length.batch_size,
    'log_every_steps': run.task.log_every_steps,
    'steps_per_call': run.config['steps_per_call'],
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
  if is_cached:
    result['data_wait'] = timing.spread(waits)
    result['cpu_ms_per_batch'] = _cpu_ms(run, count)
    print(
      f'data wait {result["data_wait"]["median"]:.2%}, CPU time to prepare a'
      f' batch {result["cpu_ms_per_batch"]:.2f} ms'
    )
  timing.save_figures(args.json, result)


def _load(run):
  return run.load(run.train_reader, DataWarnings(), num_steps=2**31)


def _cpu_ms(run, count):
  """Returns the CPU time of this process per batch, milliseconds."""
  with contextlib.closing(_load(run)) as batches:
    next(batches)
    start = time.process_time()
    for _ in range(count):
      jax.block_until_ready(next(batches))
    return 1e3 * (time.process_time() - start) / count


class _CompiledOnce(JittedSteps):
  """Compiles a call of several updates once for all rounds."""

  def compile_call(self, *args):
    if 'program' not in vars(self):
      vars(self)['program'] = super().compile_call(*args)
    return vars(self)['program']


class _Counted:
  """Gives `count` batches, then stops the run."""

  num_left_out = 0

  def __init__(self, batches, count, stop):
    self._batches, self._left, self._stop = batches, count, stop

  @property
  def wait_seconds(self):
    return getattr(self._batches, 'wait_seconds', 0.0)

  def take(self, count):
    self._left -= count
    if self._left <= 0:
      self._stop.received = signal.SIGTERM
    if isinstance(self._batches, DeviceLoader):
      return self._batches.take(count)
    return next(self._batches)


def _run_loop(run, steps, batches, count):
  """Runs the loop; returns images/s and the share of time spent waiting.

  Both are those of its meter, which is paused while a checkpoint is saved, as
  in any run.
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
        _Counted(batches, count + 1, stop),
        0,
        None,
        stop,
        DataWarnings(),
      )
    ) as loop,
  ):
    loop.steps, loop.train = steps, steps.train  # Compiled in the first round.
    outcome = loop.run(run.create_state(), 0.0)
    lines = read_json_lines(os.path.join(workdir, METRICS_FILE))
  if hasattr(batches, 'close'):
    batches.close()
  assert outcome.images_per_second
  waits = [line['data_wait'] for line in lines if 'data_wait' in line]
  return outcome.images_per_second, statistics.mean(waits)


def parser():
  result = command.ConfigParser(doc=__doc__, prog='benchmarks/loop.py')
  timing.add_arguments(result, {'rounds': 5})
  return result


if __name__ == '__main__':
  command.run(main, parser())
