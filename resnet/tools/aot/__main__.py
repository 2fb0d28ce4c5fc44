"""Compiles a run for a pod that is not there, and says what a chip will do.

  python -m resnet.tools.aot --config=configs/resnet50.py --topology=v5e:16x16

Takes --config and --config.FIELD=VALUE as main.py does; `batch_size` is that of
the whole pod. The data set need not be here. TPUs need `pip install 'jax[tpu]'`
but no TPU; `--topology=cpu:8` needs neither. A compilation takes a minute or
more. All numbers but the last, which is an estimate, are the compiler's, of one
chip: memory, arithmetic, traffic and collectives of an update and of a batch of
evaluation. The compiler counts the body of a loop once: where an update loops
over micro-batches, arithmetic and traffic are multiplied by their number (exact
but for the optimizer's part); loops over blocks (cifar_resnet1202) count once.
"""

import argparse
import functools
import json
import math
from typing import Any

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.tools import command
from resnet.tools.aot import compiled, topologies
from resnet.tools.aot.compiled import Compiled, OutOfMemoryError
from resnet.tools.aot.topologies import Chip, Topology

_MOST_TRIES = 6
_size = functools.partial(command.size_text, digits=2)


def main(args: argparse.Namespace) -> None:
  topology = topologies.open_topology(args.topology)
  run = compiled.prepare(args.config, topology)
  per_chip = run.length.batch_size // len(topology.devices)
  try:
    _, train = compiled.build_train(run)
    _, evaluation = compiled.build_eval(run)
  except OutOfMemoryError as error:
    guess = int(per_chip * error.hbm_bytes / error.needed_bytes)
    remedy = 'None that was tried fits.'
    if largest := _search(args.config, topology, guess):
      remedy = f'The largest that was found to fit is {largest}:'
      remedy += f' --config.batch_size={largest * len(topology.devices)}'
    raise InputError(
      f'A batch of {per_chip} images a chip takes {_size(error.needed_bytes)};'
      f' a chip of {topology.name} has {_size(error.hbm_bytes)}. {remedy}'
    ) from None
  report = {
    'config': args.config_path,
    'topology': topology.name,
    'num_chips': len(topology.devices),
    'sharding': dict(run.sharding.mesh.shape),
    'batch_size': run.length.batch_size,
    'batch_size_per_chip': per_chip,
    'train': train._asdict(),
    'eval': evaluation._asdict(),
  }
  if chip := topology.chip:
    estimated = _estimated_largest(chip, train, run, per_chip)
    report['hbm_bytes'] = chip.hbm_bytes
    report['headroom_bytes'] = chip.hbm_bytes - train.peak_bytes
    report['estimated_largest_batch_size_per_chip'] = estimated
    if args.largest:
      found = _search(args.config, topology, estimated)
      report['largest_batch_size_per_chip'] = found
    report['estimate'] = _roofline(chip, train, run)
  print(json.dumps(report, indent=2) if args.json else _text(report))


def _estimated_largest(
  chip: Chip, train: Compiled, run: Experiment, per_chip: int
) -> int:
  """Returns the images that fill a chip if all temporaries grow with them.

  A small network may need no temporaries: then the images themselves count.
  """
  per_image = train.temporary_bytes / per_chip + math.prod(run.image_shape)
  return per_chip + int((chip.hbm_bytes - train.peak_bytes) // per_image)


def _search(config: Any, topology: Topology, guess: int) -> int:
  """Returns the largest batch a chip that fits, 0 if none does; compiles.

  Tries `guess`, then other multiples of the group of batch statistics, up to
  the training set. After _MOST_TRIES the result may not be the very largest.
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
      _, train = compiled.build_train(run)
    except OutOfMemoryError:
      fails, guess = batch, (fits + batch) // 2
    else:
      fits, guess = batch, _estimated_largest(chip, train, run, batch)
  return fits


def _roofline(chip: Chip, train: Compiled, run: Experiment) -> dict[str, Any]:
  """Estimates the speed: the slowest of three, as if the others hid behind it.

  A collective of n chips sends (n - 1) / n of its bytes over the links, an
  all-reduce twice that.
  """
  count = run.sharding.mesh.size
  sent = sum(
    row['bytes'] * (2 if row['kind'] == 'all-reduce' else 1)
    for row in train.collectives
  )
  seconds = {
    'arithmetic': train.flops / chip.flops_per_second,
    'memory': train.accessed_bytes / chip.hbm_bytes_per_second,
    'collectives': sent * (count - 1) / count / (chip.ici_bytes_per_second / 2),
  }
  rate = run.length.batch_size / max(seconds.values())
  return {'seconds': seconds, 'images_per_second': rate}


def _text(report: dict[str, Any]) -> str:
  mesh = ' x '.join(f'{axis} {n}' for axis, n in report['sharding'].items())
  lines = [
    f'{report["config"]} on {report["topology"]}: {report["num_chips"]} chips'
    f' ({mesh}), batch {report["batch_size"]:,},'
    f' {report["batch_size_per_chip"]} a chip. Of one chip:'
  ]
  for name in ('train', 'eval'):
    program = report[name]
    lines += [
      f'{name}: compiled in {program["seconds"]:.0f} s',
      f'  memory       {_size(program["peak_bytes"])}: arguments'
      f' {_size(program["argument_bytes"])}, temporaries'
      f' {_size(program["temporary_bytes"])}',
      f'  arithmetic   {program["flops"] / 1e9:,.2f} GFLOP',
      f'  traffic      {program["accessed_bytes"] / 1e9:.2f} GB',
    ]
    if not program['collectives']:
      lines.append('  collectives  none')
    for row in program['collectives']:
      where = 'not per layer'
      if row['per_layer']:
        where = f'per layer: in {", ".join(row["layers"][:3])}'
        where += ', ...' if len(row['layers']) > 3 else ''
      lines.append(
        f'  {row["kind"]:<12} {row["count"]} of {row["tensors"]} tensors,'
        f' {_size(row["bytes"])}, the largest {_size(row["largest_bytes"])};'
        f' {where}'
      )
  if estimate := report.get('estimate'):
    largest, how = report['estimated_largest_batch_size_per_chip'], 'estimated'
    if 'largest_batch_size_per_chip' in report:
      largest, how = report['largest_batch_size_per_chip'], 'compiled'
    times = ', '.join(
      f'{name} {1000 * seconds:.1f} ms'
      for name, seconds in estimate['seconds'].items()
    )
    lines += [
      'chip:',
      f'  headroom     {_size(report["headroom_bytes"])} of'
      f' {_size(report["hbm_bytes"])} are left by the update',
      f'  largest      {largest} images a chip fit ({how})',
      f'  ESTIMATE     {estimate["images_per_second"]:,.0f} images/s on all'
      f' chips, by peak figures of the maker: {times}',
    ]
  return '\n'.join(lines)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser('aot', __doc__)
  result.add_argument(
    '--topology',
    required=True,
    metavar='NAME:SHAPE',
    help='v5e:16x16, v5p:4x4x4, v6e:2x4, ..., or cpu:8; a wrong one lists all',
  )
  result.add_argument(
    '--largest',
    action='store_true',
    help='compile on, to find the largest batch that fits',
  )
  result.add_argument('--json', action='store_true', help='as a JSON object')
  return result


if __name__ == '__main__':
  command.run(main, parser())
