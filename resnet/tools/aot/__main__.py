"""Compiles a run for a pod that is not there, and says what a chip will do.

  python -m resnet.tools.aot --config=configs/resnet50.py --topology=v5e:16x16

Takes --config and --config.FIELD=VALUE as main.py does; `batch_size` is that of
the whole pod. The data set need not be here. TPUs need `pip install 'jax[tpu]'`
but no TPU; `--topology=cpu:8` needs neither. A compilation takes a minute or
more. All numbers but the last, which is an estimate, are the compiler's, of one
chip: memory, arithmetic, traffic and collectives of an update and of a batch of
evaluation. What is in a loop, as the parts of an accumulated batch, counts each
time that it runs. --largest compiles on, to find the largest batch that fits.
"""

import argparse
import dataclasses
import json
import math
from typing import Any

from resnet.errors import InputError
from resnet.tools import command
from resnet.tools.aot import compiled, topologies
from resnet.tools.aot.compiled import Compiled, OutOfMemoryError
from resnet.tools.aot.topologies import Chip, Topology

_MOST_TRIES = 6


def main(args: argparse.Namespace) -> None:
  topology = topologies.open_topology(args.topology)
  run = compiled.prepare(args.config, topology)
  per_chip = run.length.batch_size // len(topology.devices)
  try:
    train = compiled.compile_train(run)
    evaluation = compiled.compile_eval(run)
  except OutOfMemoryError as error:
    raise _too_large(error, args.config, topology, per_chip) from None
  report = {
    'config': args.config_path,
    'topology': topology.name,
    'num_chips': len(topology.devices),
    'sharding': dict(run.sharding.mesh.shape),
    'batch_size': run.length.batch_size,
    'batch_size_per_chip': per_chip,
    'train': dataclasses.asdict(train),
    'eval': dataclasses.asdict(evaluation),
  }
  if topology.chip:
    report |= _limits(topology.chip, train, per_chip, run.image_shape)
    if args.largest:
      report['largest_batch_size_per_chip'] = _search(
        args.config, topology, report['estimated_largest_batch_size_per_chip']
      )
    report['estimate'] = _roofline(topology, train, run.length.batch_size)
  print(json.dumps(report, indent=2) if args.json else _text(report))


def _limits(
  chip: Chip, train: Compiled, per_chip: int, image_shape: tuple[int, ...]
) -> dict[str, Any]:
  """What a chip's memory leaves, and the batch that would fill it.

  The estimate holds that all temporaries grow with the batch, which is a
  little more than they do. (A small net may need none: then images count.)
  """
  headroom = chip.hbm_bytes - train.peak_bytes
  per_image = train.temporary_bytes / per_chip + math.prod(image_shape)
  return {
    'hbm_bytes': chip.hbm_bytes,
    'headroom_bytes': headroom,
    'estimated_largest_batch_size_per_chip': per_chip
    + int(headroom // per_image),
  }


def _too_large(
  error: OutOfMemoryError, config: Any, topology: Topology, per_chip: int
) -> InputError:
  """Returns the error of a batch that does not fit; finds one that does."""
  share = error.hbm_bytes / error.needed_bytes
  largest = _search(config, topology, int(per_chip * share))
  remedy = 'None that was tried fits.'
  if largest:
    remedy = (
      f'The largest that was found to fit is {largest}:'
      f' --config.batch_size={largest * len(topology.devices)}'
    )
  return InputError(
    f'A batch of {per_chip} images a chip takes {_size(error.needed_bytes)}; a'
    f' chip of {topology.name} has {_size(error.hbm_bytes)}. {remedy}'
  )


def _search(config: Any, topology: Topology, guess: int) -> int:
  """Returns the largest batch a chip that fits, 0 if none does; compiles.

  A multiple of the group of batch statistics, so that they stay on a chip, and
  at most the training set. After _MOST_TRIES it may not be the very largest.

  Args:
    config: of the run; its batch size is changed.
    topology: of TPUs.
    guess: images a chip to try first.
  """
  chip, count = topology.chip, len(topology.devices)
  assert chip  # A CPU takes any batch.
  source = compiled.prepare(config, topology).train_reader.source
  step = (config.model.bn_group_size or 8) * config.accumulation_steps
  fits, fails = 0, (len(source) // count // step + 1) * step
  for _ in range(_MOST_TRIES):
    if fits + step == fails:
      break
    batch = min(max(guess // step * step, fits + step), fails - step)
    config.batch_size = batch * count
    run = compiled.prepare(config, topology)
    try:
      train = compiled.compile_train(run)
    except OutOfMemoryError as error:
      fails = batch
      guess = int(batch * error.hbm_bytes / error.needed_bytes)
      if not fits:  # Memory may grow in leaps: 128 images as 1 image.
        guess = min(guess, batch // 2)
    else:
      fits = batch
      limits = _limits(chip, train, batch, run.image_shape)
      guess = limits['estimated_largest_batch_size_per_chip']
  return fits


def _roofline(
  topology: Topology, train: Compiled, batch_size: int
) -> dict[str, Any]:
  """Estimates the speed: the slowest of three, as if the others hid behind it.

  A collective of n chips sends (n - 1) / n of its bytes over the links, an
  all-reduce twice that.
  """
  chip, count = topology.chip, len(topology.devices)
  assert chip
  sent = sum(
    row['bytes'] * (2 if row['kind'] == 'all-reduce' else 1)
    for row in train.collectives
  )
  seconds = {
    'arithmetic': train.flops / chip.flops_per_second,
    'memory': train.accessed_bytes / chip.hbm_bytes_per_second,
    'collectives': sent * (count - 1) / count / (chip.ici_bytes_per_second / 2),
  }
  slowest = max(seconds, key=lambda name: seconds[name])
  return {
    'seconds': seconds,
    'bound_by': slowest,
    'images_per_second': batch_size / seconds[slowest],
  }


def _text(report: dict[str, Any]) -> str:
  mesh = ' x '.join(f'{axis} {n}' for axis, n in report['sharding'].items())
  lines = [
    f'{report["config"]} on {report["topology"]}: {report["num_chips"]} chips'
    f' ({mesh}), batch {report["batch_size"]:,},'
    f' {report["batch_size_per_chip"]} a chip. Of one chip:'
  ]
  for name in ('train', 'eval'):
    lines += _lines_of(name, report[name])
  if 'hbm_bytes' in report:
    lines += _lines_of_chip(report)
  return '\n'.join(lines)


def _lines_of(name: str, of: dict[str, Any]) -> list[str]:
  lines = [
    f'{name}: compiled in {of["seconds"]:.0f} s',
    f'  memory       {_size(of["peak_bytes"])}: arguments'
    f' {_size(of["argument_bytes"])}, temporaries'
    f' {_size(of["temporary_bytes"])}',
    f'  arithmetic   {of["flops"] / 1e9:,.2f} GFLOP',
    f'  traffic      {of["accessed_bytes"] / 1e9:.2f} GB',
  ]
  for row in of['collectives']:
    where = f'in {", ".join(row["layers"][:3])}' if row['per_layer'] else ''
    more = ', ...' if len(row['layers']) > 3 else ''
    lines.append(
      f'  {row["kind"]:<12} {row["count"]} of {row["tensors"]} tensors,'
      f' {_size(row["bytes"])}, the largest {_size(row["largest_bytes"])};'
      f' {"per layer: " if row["per_layer"] else "not per layer"}{where}{more}'
    )
  return lines if of['collectives'] else [*lines, '  collectives  none']


def _lines_of_chip(report: dict[str, Any]) -> list[str]:
  lines = [
    'chip:',
    f'  headroom     {_size(report["headroom_bytes"])} of'
    f' {_size(report["hbm_bytes"])} are left by the update',
    '  largest      about'
    f' {report["estimated_largest_batch_size_per_chip"]} images a chip fit'
    ' (an estimate; --largest compiles to find out)',
  ]
  if (largest := report.get('largest_batch_size_per_chip')) is not None:
    lines[-1] = f'  largest      {largest} images a chip fit (compiled)'
  estimate = report['estimate']
  times = ', '.join(
    f'{name} {1000 * seconds:.1f} ms'
    for name, seconds in estimate['seconds'].items()
  )
  return [
    *lines,
    f'  ESTIMATE     {estimate["images_per_second"]:,.0f} images/s on'
    f' all chips, by peak figures of the maker: {times}',
  ]


def _size(num_bytes: float) -> str:
  for unit, name in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
    if abs(num_bytes) >= unit:
      return f'{num_bytes / unit:.2f} {name}'
  return f'{num_bytes:.0f} B'


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser(
    prog='python -m resnet.tools.aot',
    usage='%(prog)s [--config=FILE] [--config.FIELD=VALUE ...]'
    ' --topology=NAME:SHAPE [--largest] [--json]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  result.add_argument(
    '--topology',
    required=True,
    metavar='NAME:SHAPE',
    help='v5e:16x16, v5p:4x4x4, v6e:2x4, ..., or cpu:8; a wrong one lists all',
  )
  result.add_argument(
    '--largest', action='store_true', help='compile to find the largest batch'
  )
  result.add_argument('--json', action='store_true', help='as a JSON object')
  return result


if __name__ == '__main__':
  command.run(main, parser())
