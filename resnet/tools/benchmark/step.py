"""`step` and `eval`: how fast, how near to the limits, against whom."""

import argparse
from collections.abc import Callable
import contextlib
import functools
import itertools
import json
import tempfile
from typing import Any

import jax

from resnet import config as config_lib
from resnet.errors import InputError
from resnet.files import write_atomically
from resnet.tools.aot.compiled import Compiled
from resnet.tools.benchmark import ceilings, programs, timing, traces
from resnet.tools.benchmark.programs import Program

HELP = 'a training step, or a batch of evaluation, of images on the device'
# What each name of --against stands for.
_AGAINST = {
  'flax': ('flax',),
  'torch': ('torch-eager', 'torch-compile'),
  'torch-eager': ('torch-eager',),
  'torch-compile': ('torch-compile',),
}
_TRACED_STEPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the arguments."""
  parser.add_argument(
    '--against',
    default='',
    metavar='RIVALS',
    help=f'of {", ".join(_AGAINST)}: the same network in turn with ours;'
    ' torch is both of them',
  )
  parser.add_argument(
    '--also',
    action='append',
    default=[],
    metavar='FIELDS',
    help='our step with other fields, in turn likewise:'
    " --also='model.remat=True model.conv_backend=xla'",
  )
  parser.add_argument(
    '--torch-python',
    metavar='PYTHON',
    help='an interpreter that has torchvision; default: this one',
  )
  parser.add_argument('--rounds', type=int, default=10, help='default: 10')
  parser.add_argument(
    '--seconds',
    type=float,
    default=0.5,
    help='a round takes at least so long, and a step; default: 0.5',
  )
  parser.add_argument(
    '--profile',
    metavar='DIR',
    help='where to leave a trace for xprof or TensorBoard; tells the ten most'
    ' costly operations',
  )
  parser.add_argument('--json', metavar='FILE', help='where to write figures')


def main(args: argparse.Namespace) -> None:
  """Measures and prints."""
  names = [name for name in args.against.split(',') if name]
  if unknown := set(names) - set(_AGAINST):
    raise InputError(
      f'--against={args.against}: {", ".join(sorted(unknown))} is none of'
      f' {", ".join(_AGAINST)}.'
    )
  if args.rounds < 1 or args.seconds <= 0:
    raise InputError('--rounds must be at least 1, and --seconds positive.')
  programs.prepare_backend(shared=any('torch' in name for name in names))
  run = programs.resolve_here(args.config)
  with contextlib.ExitStack() as cleanup:
    # They may be refused, so they come first.
    others = open_rivals(run, names, args, cleanup)
    ours = programs.ours(run, args.subject)
    result = {
      'machine': timing.machine(),
      'devices': programs.describe_devices(run),
      'jax': jax.__version__,
      'subject': args.subject,
      'network': run.config['model.name'],
      'image_shape': list(run.image_shape),
      'dtype': run.config['model.dtype'],
      **_measure(run, ours, others, args),
    }
  result |= _trace(ours, args.profile)
  _show(result, show_operations=bool(args.profile))
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


def open_rivals(
  run: Any,
  names: list[str],
  args: argparse.Namespace,
  cleanup: contextlib.ExitStack,
) -> dict[str, Any]:
  """Returns the programs that ours is compared with."""
  others: dict[str, Any] = {}
  wanted = itertools.chain.from_iterable(_AGAINST[name] for name in names)
  for name in dict.fromkeys(wanted):
    if name == 'flax':
      others[name] = programs.flax(run, args.subject)
      continue
    try:
      other = programs.torch(run, args.subject, name, args.torch_python)
    except InputError as error:
      # Where eager works and compile was not asked for, go on without it.
      if 'torch-eager' not in others or name in names:
        raise
      print(f'Without {name}: {error}', flush=True)
    else:
      others[name] = cleanup.enter_context(other)
  for fields in args.also:
    changed = programs.resolve_here(config_lib.changed(args.config, fields))
    others[fields] = programs.ours(changed, args.subject)
  return others


def _measure(
  run: Any, ours: Program, others: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
  """Times all in turn; returns figures of ours, limits and ratios."""
  roads: dict[str, Callable[[], float]] = {
    name: _repeated(program.seconds, args.seconds)
    for name, program in {'ours': ours, **others}.items()
  }
  device = run.sharding.mesh.devices.flat[0]
  limits = ceilings.ceilings(device, run.task.model.dtype)
  found = timing.in_turn({**roads, **limits}, args.rounds)
  seconds = timing.spread(found['ours'])
  flops, copied = (max(found[name]) for name in limits)
  facts = ours.facts
  return {
    'batch_size': ours.batch_size,
    'compile_seconds': facts.seconds,
    'device_peak_bytes': (device.memory_stats() or {}).get('peak_bytes_in_use'),
    **_counts(facts),
    'ms': {name: 1e3 * value for name, value in seconds.items()},
    'images_per_second': timing.spread(
      [ours.batch_size / value for value in found['ours']]
    ),
    'ceilings': {'flops_per_second': flops, 'bytes_per_second': copied},
    'share_of_ceiling': {
      'arithmetic': facts.flops / seconds['median'] / flops,
      'memory': facts.accessed_bytes / seconds['median'] / copied,
    },
    'against': {
      name: {
        'ratio': timing.spread(timing.pair_ratios(found[name], found['ours'])),
        'images_per_second': ours.batch_size
        / timing.spread(found[name])['median'],
        **_counts(program.facts),
      }
      for name, program in others.items()
    },
  }


def _counts(facts: Compiled | None) -> dict[str, Any]:
  names = ('flops', 'accessed_bytes', 'peak_bytes')
  return {name: getattr(facts, name) for name in names} if facts else {}


def _repeated(
  seconds: Callable[[int], float], least: float
) -> Callable[[], float]:
  """Returns what times a step: the mean of as many as take `least` seconds."""
  seconds(2)  # Warm-up.
  count = max(1, round(least / seconds(1)))
  return lambda: seconds(count) / count


def _trace(ours: Program, folder: str | None) -> dict[str, Any]:
  with contextlib.ExitStack() as cleanup:
    if folder is None:
      folder = cleanup.enter_context(tempfile.TemporaryDirectory())
    traces.record(functools.partial(ours.seconds, _TRACED_STEPS), folder)
    found = traces.read(folder, ours.hlo, _TRACED_STEPS)
  total = sum(one.seconds for one in found)
  return {
    'time_by_kind': traces.by_kind(found),
    'costliest': [
      {
        'name': one.name,
        'kind': one.kind,
        'source': one.source,
        'ms': 1e3 * one.seconds,
        'share': one.seconds / total,
      }
      for one in found[:10]
    ],
  }


def _show(result: dict[str, Any], *, show_operations: bool) -> None:
  ms, rate = result['ms'], result['images_per_second']
  peak = result['device_peak_bytes']
  share, ceiling = result['share_of_ceiling'], result['ceilings']
  kinds = ', '.join(
    f'{kind} {part:.0%}' for kind, part in result['time_by_kind'].items()
  )
  print(
    f'{result["subject"]} of {result["network"]}, {result["dtype"]}, batch'
    f' {result["batch_size"]}, images'
    f' {"x".join(map(str, result["image_shape"]))}, on {result["devices"]}'
    f' ({result["machine"]}), jax {result["jax"]}\n'
    f'  {rate["median"]:,.1f} images/s, {ms["median"]:,.2f} ms (quartiles'
    f' {ms["low"]:,.2f} to {ms["high"]:,.2f}); compiled in'
    f' {result["compile_seconds"]:.1f} s\n'
    f'  memory {result["peak_bytes"] / 1e9:.2f} GB by the compiler'
    f'{f", {peak / 1e9:.2f} GB in use at most" if peak else ""}\n'
    f'  arithmetic {result["flops"] / 1e9:,.1f} GFLOP,'
    f' {share["arithmetic"]:.0%} of'
    f' {ceiling["flops_per_second"] / 1e9:,.0f} GFLOP/s (a large matrix'
    ' product)\n'
    f'  traffic {result["accessed_bytes"] / 1e9:,.2f} GB, {share["memory"]:.0%}'
    f' of {ceiling["bytes_per_second"] / 1e9:,.1f} GB/s (a large copy)\n'
    f'  time by kind: {kinds}'
  )
  for name, other in result['against'].items():
    ratio = other['ratio']
    print(
      f'  {ratio["median"]:.2f} times {name} (quartiles {ratio["low"]:.2f} to'
      f' {ratio["high"]:.2f}; {other["images_per_second"]:,.1f} images/s)'
    )
  for row in result['costliest'] if show_operations else ():
    print(
      f'  {row["ms"]:9.2f} ms {row["share"]:6.1%}  {row["kind"]:14}'
      f' {row["name"]}  {row["source"]}'
    )
