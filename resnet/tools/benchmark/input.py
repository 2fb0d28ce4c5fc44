"""Measures the input pipeline from the disk to the device."""

import argparse
from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import statistics
import time
from typing import Any

import jax

from resnet import config as config_lib
from resnet.data.host.loader import read_ahead
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.experiment import Experiment, resolve
from resnet.tools.benchmark import timing

COUNTS = {'rounds': 7, 'batches': 10}
# Assumed images/s of training ResNet-50, bfloat16 (docs/input.md).
_ACCELERATORS = {'H100': 6000, 'TPU v5e chip': 2500}
_STAGES = ('read', 'decode', 'crop and resize', 'batch', 'transfer')


# A context that yields a function: number of batches -> images/s.
Opener = contextlib.AbstractContextManager[Callable[[int], float]]


def main(
  args: argparse.Namespace, rivals: Mapping[str, Opener] | None = None
) -> dict[str, Any]:
  """Prints and returns speeds, with ratios to the first rival or 'config'."""
  rivals = rivals or {}
  runs = {'config': resolve(args.config).at_last_size()}
  for fields in args.also:
    if not all(field.startswith('data.') for field in fields.split()):
      raise InputError(f'--also={fields}: all must be data.FIELD=VALUE.')
    changed = config_lib.changed(args.config, fields)
    runs[fields] = resolve(changed).at_last_size()
  stages = {}
  for name, run in runs.items():
    stages[name] = _stages(run, args.batches)
    print(f'{name}: one core, microseconds per image and images/s')
    total = sum(stages[name].values())
    for stage, value in {**stages[name], 'all': total}.items():
      print(f'  {stage:16}{value:8.1f}{1e6 / max(value, 1e-3):12,.0f}')
  opened = {name: open_reader(run) for name, run in runs.items()}
  with contextlib.ExitStack() as cleanup:
    measurements = {
      name: functools.partial(cleanup.enter_context(one), args.batches)
      for name, one in {**opened, **rivals}.items()
    }
    rates = timing.in_turn(measurements, args.rounds)
  first = next(iter(rivals), 'config')
  ratios = {
    name: timing.ratio(values, rates[first])['median']
    for name, values in rates.items()
  }
  ours = runs['config']
  held = ours.loader.max_batches * ours.train_reader.num_batch_bytes
  print(f'{timing.machine()}, threads: {ours.loader.num_threads}, medians:')
  for name, values in rates.items():
    print(
      f'  {statistics.median(values):9,.0f} images/s ({min(values):,.0f} to'
      f' {max(values):,.0f}), {ratios[name]:.2f} times {first}: {name}'
    )
  print(f'Read ahead: at most {held / 1e6:,.1f} MB.')
  for device, rate in _ACCELERATORS.items():
    cores = rate * sum(stages['config'].values()) / 1e6
    print(
      f'1 {device} (ResNet-50, assumed {rate:,} images/s) needs {cores:.1f}'
      ' cores.'
    )
  return {
    'stages_us': stages,
    'images_per_second': rates,
    'ratios': ratios,
    'read_ahead_bytes': held,
  }


def _stages(run: Experiment, count: int) -> dict[str, float]:
  """Returns microseconds per image for each stage, in one thread."""
  reader = run.train_reader
  times: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
  for step in range(count):
    marks = [time.perf_counter()]
    indices, all_draws = reader.plan(step)
    records = reader.source.read(indices)
    marks.append(time.perf_counter())
    decoded = list(map(reader.decode, all_draws, indices, records))
    marks.append(time.perf_counter())
    images = [
      reader.transform(image, box, draws)
      for (image, box), draws in zip(decoded, all_draws, strict=True)
    ]
    marks.append(time.perf_counter())
    batch = reader.stack([(image, 0) for image in images])
    marks.append(time.perf_counter())
    jax.block_until_ready(jax.device_put(batch, run.sharding.batch))
    marks.append(time.perf_counter())
    for stage, start, end in zip(_STAGES, marks, marks[1:], strict=False):
      times[stage] += (end - start) / count / reader.row_count * 1e6
  return times


@contextlib.contextmanager
def open_reader(run: Experiment) -> Iterator[Callable[[int], float]]:
  """Yields a function: number of batches -> images/s of the run's reader."""
  batches = read_ahead(
    run.train_reader,
    run.loader,
    first_step=0,
    num_steps=2**31,
    warnings=DataWarnings(),
  )

  def images_per_second(count: int) -> float:
    # Use up the batches that were read ahead, so that the pace is steady.
    for _ in range(max(count, run.loader.max_batches)):
      next(batches)
    start = time.perf_counter()
    for _ in range(count):
      next(batches)
    return count * run.train_reader.row_count / (time.perf_counter() - start)

  with contextlib.closing(batches):
    yield images_per_second
