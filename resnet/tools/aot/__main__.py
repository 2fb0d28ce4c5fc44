"""Compiles a run for an absent pod and reports the cost on one chip.

  python -m resnet.tools.aot --config=configs/resnet50.py --topology=v5e:16x16

Takes --config and --config.FIELD=VALUE as main.py does; `batch_size` is that of
the whole pod. The data set may be absent. A TPU topology needs
`pip install 'jax[tpu]'` but no TPU; `--topology=cpu:8` needs neither. A
compilation takes a minute or more. For one chip, the compiler reports memory,
arithmetic, traffic and collectives of an update and of an evaluation batch;
step time, efficiency and images/s are an estimate.
The compiler counts the body of a loop once. If micro-batches run in a loop,
arithmetic and traffic are multiplied by the number of micro-batches, so only
the optimizer is overcounted. Loops over blocks (cifar_resnet1202) count once.
"""

import argparse
import functools
import json
from typing import Any

from resnet.errors import InputError
from resnet.tools import command
from resnet.tools.aot import compiled, estimate, topologies
from resnet.tools.aot.compiled import OutOfMemoryError
from resnet.tools.aot.topologies import Topology

_MAX_TRIES = 6
_size = functools.partial(command.size_text, digits=2)


def main(args: argparse.Namespace) -> None:
  """Compiles both programs and prints the report."""
  topology = topologies.open_topology(args.topology)
  run = compiled.prepare(args.config, topology)
  num_chips = len(topology.devices)
  per_chip = run.length.batch_size // num_chips
  try:
    _, train = compiled.build_subject(run, 'step')
    _, evaluation = compiled.build_subject(run, 'eval')
  except OutOfMemoryError as error:
    guess = int(per_chip * error.hbm_bytes / error.needed_bytes)
    remedy = 'No smaller batch that was tried fits.'
    if largest := _search(args.config, topology, guess):
      remedy = f'The largest batch found to fit is {largest} images per chip:'
      remedy += f' --config.batch_size={largest * num_chips}'
    raise InputError(
      f'A batch of {per_chip} images per chip needs'
      f' {_size(error.needed_bytes)}; a chip of {topology.name} has'
      f' {_size(error.hbm_bytes)}. {remedy}'
    ) from None
  report = {
    'config': args.config_path,
    'topology': topology.name,
    'num_chips': num_chips,
    'sharding': dict(run.sharding.mesh.shape),
    'batch_size': run.length.batch_size,
    'batch_size_per_chip': per_chip,
    'train': train._asdict(),
    'eval': evaluation._asdict(),
  }
  if chip := topology.chip:
    report['hbm_bytes'] = chip.hbm_bytes
    report['headroom_bytes'] = chip.hbm_bytes - train.peak_bytes
    guess = estimate.largest_batch(chip, train, run)
    report['estimated_largest_batch_size_per_chip'] = guess
    if args.largest:
      largest = _search(args.config, topology, guess)
      report['largest_batch_size_per_chip'] = largest
    report['estimate'] = estimate.speed(topology, train, per_chip)
  print(json.dumps(report, indent=2) if args.json else _text(report))


def _search(config: Any, topology: Topology, guess: int) -> int:
  """Compiles to find the largest batch per chip that fits; 0 if none does.

  Tries multiples of the batch-norm group size (8 if unset) times the number of
  micro-batches, first `guess` rounded down. The batch is at most the training
  set. A larger batch may still fit after _MAX_TRIES compilations.
  """
  chip, count = topology.chip, len(topology.devices)
  assert chip  # A CPU takes any batch.
  source = compiled.prepare(config, topology).train_reader.source
  step = (config.model.bn_group_size or 8) * config.accumulation_steps
  fits, fails = 0, (len(source) // count // step + 1) * step
  for _ in range(_MAX_TRIES):
    if fits + step == fails:
      break
    batch = min(max(guess // step * step, fits + step), fails - step)
    config.batch_size = batch * count
    run = compiled.prepare(config, topology)
    try:
      _, train = compiled.build_subject(run, 'step')
      fits, guess = batch, estimate.largest_batch(chip, train, run)
    except OutOfMemoryError:
      fails, guess = batch, (fits + batch) // 2
  return fits


def _text(report: dict[str, Any]) -> str:
  mesh = ' x '.join(f'{axis} {n}' for axis, n in report['sharding'].items())
  lines = [
    f'{report["config"]} on {report["topology"]}: {report["num_chips"]} chips'
    f' ({mesh}), batch {report["batch_size"]:,},'
    f' {report["batch_size_per_chip"]} per chip. For one chip:'
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
      *map(_collective_text, program['collectives']),
    ]
    if not program['collectives']:
      lines.append('  collectives  none')
  if found := report.get('estimate'):
    largest, how = report['estimated_largest_batch_size_per_chip'], 'estimated'
    if 'largest_batch_size_per_chip' in report:
      largest, how = report['largest_batch_size_per_chip'], 'compiled'
    times = ', '.join(
      f'{name} {1000 * seconds:.1f} ms'
      for name, seconds in found['seconds'].items()
    )
    lines += [
      'chip:',
      f'  headroom     {_size(report["headroom_bytes"])} of'
      f' {_size(report["hbm_bytes"])} are free during an update',
      f'  largest      {largest} images per chip fit ({how})',
      f'  ESTIMATE     {found["images_per_second"]:,.0f} images/s on all chips,'
      f' from published peak figures: {times}; a step takes'
      f' {1000 * found["step_seconds"]:.1f} ms,'
      f' {100 * found["efficiency"]:.1f} % of it without collectives',
    ]
  return '\n'.join(lines)


def _collective_text(row: dict[str, Any]) -> str:
  layers = row['layers'][:3] + ['...'] * (len(row['layers']) > 3)
  where = f'per layer: in {", ".join(layers)}' if layers else 'not per layer'
  return (
    f'  {row["kind"]:<12} {row["count"]} with {row["tensors"]} tensors,'
    f' {_size(row["bytes"])}; {where}'
  )


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser('aot', __doc__)
  text = 'v5e:16x16, v5p:4x4x4, v6e:2x4, ..., or cpu:8; a wrong value lists all'
  result.add_argument(
    '--topology', required=True, metavar='NAME:SHAPE', help=text
  )
  text = 'compile for other batch sizes to find the largest that fits'
  result.add_argument('--largest', action='store_true', help=text)
  result.add_argument('--json', action='store_true', help='print JSON')
  return result


if __name__ == '__main__':
  command.run(main, parser())
