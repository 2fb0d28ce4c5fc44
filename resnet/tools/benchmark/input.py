"""How fast images come from the disk to the device: stages, cores, rivals."""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import math
import os
import statistics
import time
from typing import Any

import jax

from resnet import config as config_lib
from resnet import experiment
from resnet.data.host.loader import DeviceLoader, read_ahead
from resnet.data.host.reader import BatchReader
from resnet.data.host.warnings import Notes
from resnet.errors import InputError
from resnet.files import write_atomically
from resnet.tools.benchmark import timing
from resnet.tools.benchmark.rivals import Rival

HELP = 'from the disk to the device'
# Rivals, and the package that each needs.
_RIVALS = {'tfdata': 'tensorflow', 'torchvision': 'torchvision'}
# Images/s that ResNet-50 trains at, batch 256, bfloat16 (docs/input.md).
_ACCELERATORS = {'H100': 6000, 'TPU v5e chip': 2500}
_STAGES = ('read', 'decode', 'crop and resize', 'batch', 'transfer')
# A run that eats this share of what the loader gives should hardly wait.
_LOAD = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments of `input`."""
  parser.add_argument(
    '--also',
    action='append',
    default=[],
    metavar='FIELDS',
    help='the same with other fields, in the same rounds:'
    " --also='data.name=photos data.data_dir=DIR'",
  )
  parser.add_argument(
    '--against',
    default='',
    metavar='_RIVALS',
    help=f'of {", ".join(_RIVALS)}; needs data.name=folder',
  )
  for name, package in _RIVALS.items():
    parser.add_argument(
      f'--{name}-python',
      metavar='PYTHON',
      help=f'an interpreter that has {package}; default: this one',
    )
  parser.add_argument('--rounds', type=int, default=7, help='default: 7')
  parser.add_argument(
    '--batches', type=int, default=10, help='a round; default: 10'
  )
  parser.add_argument('--json', metavar='FILE', help='where to write figures')


def main(args: argparse.Namespace) -> None:
  """Measures and prints; the first road is the baseline of the ratios."""
  if min(args.rounds, args.batches) < 1:
    raise InputError('--rounds and --batches must be at least 1.')
  # Of the largest size, where sizes are scheduled.
  runs = {'config': experiment.resolve(args.config).at_last_size()}
  for fields in args.also:
    changed = _changed(args.config, fields)
    runs[fields] = experiment.resolve(changed).at_last_size()
  names = [name for name in args.against.split(',') if name]
  if unknown := set(names) - set(_RIVALS):
    raise InputError(
      f'--against={args.against}: {", ".join(sorted(unknown))} is none of'
      f' {", ".join(_RIVALS)}.'
    )
  if names and args.config.data.name != 'folder':
    raise InputError('--against needs JPEG files: --config.data.name=folder')
  result: dict[str, Any] = {
    'machine': timing.machine(),
    'batch_size': args.config.batch_size,
    'threads': args.config.data.num_threads,
    'stages_us': {},
  }
  for name, run in runs.items():
    stages = result['stages_us'][name] = _stages(run, args.batches)
    _show_stages(name, stages)
  with contextlib.ExitStack() as cleanup:
    roads: dict[str, Callable[[int], float]] = {
      name: cleanup.enter_context(_our_road(run)) for name, run in runs.items()
    }
    for name in names:
      roads[name] = cleanup.enter_context(_rival(args, name)).ask
    rates = timing.in_turn(
      {
        name: functools.partial(road, args.batches)
        for name, road in roads.items()
      },
      args.rounds,
    )
  result['images_per_second'] = rates
  result['ratios'] = _ratios(rates, names[0] if names else 'config')
  result['read_ahead_bytes'] = _read_ahead_bytes(runs['config'])
  result['data_wait'] = _wait(runs['config'], rates['config'], args.batches)
  _show(result)
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


def _changed(config: Any, fields: str) -> Any:
  for field in fields.split():
    if not field.startswith('data.'):
      raise InputError(f'--also={fields!r}: {field!r} is not data.FIELD=VALUE.')
  return config_lib.changed(config, fields)


def _stages(run: experiment.Experiment, count: int) -> dict[str, float]:
  """Returns microseconds an image takes in each stage, in one thread."""
  reader = run.train_reader
  times: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
  for step in range(count):
    marks = [time.perf_counter()]
    plan = reader.plan(step)
    records = reader.source.read(plan.indices)
    marks.append(time.perf_counter())
    images, boxes = [], []
    for draws, index, record in zip(
      plan.draws, plan.indices, records, strict=True
    ):
      image, box = reader.decode(draws, index, record)
      images.append(image)
      boxes.append(box)
    marks.append(time.perf_counter())
    images = [
      reader.transform(*each)
      for each in zip(images, boxes, plan.draws, strict=True)
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
def _our_road(
  run: experiment.Experiment,
) -> Iterator[Callable[[int], float]]:
  batches = _batches(run.train_reader, run)

  def images_per_second(count: int) -> float:
    # What had waited, ready, is gone after these; the pace is then the road's.
    for _ in range(max(count, run.loader.max_batches)):
      next(batches)
    start = time.perf_counter()
    for _ in range(count):
      next(batches)
    return count * run.train_reader.row_count / (time.perf_counter() - start)

  try:
    yield images_per_second
  finally:
    batches.close()


def _batches(reader: BatchReader, run: experiment.Experiment) -> Any:
  return read_ahead(
    reader, run.loader, first_step=0, num_steps=2**31, notes=Notes()
  )


def _rival(args: argparse.Namespace, name: str) -> Rival:
  folder = os.path.join(args.config.data.data_dir, args.config.data.train_split)
  return Rival(
    name,
    'input_rivals.py',
    (name, folder, args.config.batch_size, args.config.data.num_threads),
    package=_RIVALS[name],
    python=getattr(args, f'{name}_python'),
  )


def _ratios(rates: dict[str, list[float]], baseline: str) -> dict[str, float]:
  """Returns the median over rounds of each road's ratio to the baseline's."""
  return {
    f'{name} / {baseline}': statistics.median(
      timing.pair_ratios(values, rates[baseline])
    )
    for name, values in rates.items()
    if name != baseline
  }


def _read_ahead_bytes(run: experiment.Experiment) -> int:
  """Returns the most memory that batches take that are read ahead."""
  pixels = math.prod(run.train_image_shape)
  # An int32 label and a bool beside the image.
  return run.loader.max_batches * run.train_reader.row_count * (pixels + 5)


def _wait(
  run: experiment.Experiment, rates: list[float], count: int
) -> dict[str, float]:
  """Returns the share of time that a run waits which eats _LOAD of the rate."""
  rate = _LOAD * statistics.median(rates)
  loader = DeviceLoader(
    _batches(run.train_reader, run), run.sharding.batch, Notes()
  )
  loader.start()
  loader.wait_seconds = 0.0
  start = time.monotonic()
  for _ in range(2 * count):
    jax.block_until_ready(next(loader))
    time.sleep(run.train_reader.row_count / rate)
  share = loader.wait_seconds / (time.monotonic() - start)
  loader.close()
  return {'images_per_second': rate, 'share': share}


def _show_stages(name: str, stages: dict[str, float]) -> None:
  total = sum(stages.values())
  print(f'{name}: one core, microseconds an image and images/s')
  for stage, value in {**stages, 'all': total}.items():
    print(f'  {stage:16}{value:8.1f}{1e6 / max(value, 1e-3):12,.0f}')


def _show(result: dict[str, Any]) -> None:
  print(f'{result["machine"]}, {result["threads"]} threads, medians:')
  for name, values in result['images_per_second'].items():
    print(
      f'  {statistics.median(values):9,.0f} images/s'
      f' ({min(values):,.0f} to {max(values):,.0f})  {name}'
    )
  for name, ratio in result['ratios'].items():
    print(f'  {ratio:9.2f}  {name}')
  print(f'Read ahead: at most {result["read_ahead_bytes"] / 1e6:,.0f} MB.')
  wait = result['data_wait']
  print(
    f'A run that eats {wait["images_per_second"]:,.0f} images/s waits'
    f' {wait["share"]:.1%} of the time.'
  )
  stages = result['stages_us']['config']
  for device, rate in _ACCELERATORS.items():
    cores = rate * sum(stages.values()) / 1e6
    print(f'ResNet-50 on one {device} ({rate:,} images/s): {cores:.1f} cores.')
