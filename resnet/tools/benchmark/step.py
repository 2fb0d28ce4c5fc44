"""Measures an update or an evaluation step against limits and rivals."""

import argparse
from collections.abc import Callable, Mapping
import contextlib
import statistics
from typing import Any

import jax

from resnet import config as config_lib
from resnet.experiment import Experiment
from resnet.tools.benchmark import programs, timing
from resnet.tools.benchmark.programs import Program

COUNTS = {'rounds': 10}
ROUND_SECONDS = 0.5  # Target duration of a round.
_TRACED_STEPS = 3
# (run, 'step' or 'eval') -> a program to compare with, or None to leave it out.
Rival = Callable[
  [Experiment, str], contextlib.AbstractContextManager[Program | None]
]


def main(
  args: argparse.Namespace, rivals: Mapping[str, Rival] | None = None
) -> dict[str, Any]:
  """Measures, prints and returns the figures; `rivals` take turns with ours."""
  # Compilation is timed, so no program may come from the cache.
  jax.config.update('jax_enable_compilation_cache', False)
  run = programs.resolve_here(args.config)
  with contextlib.ExitStack() as cleanup:
    # Open rivals first, because one may raise an InputError.
    others = {
      name: program
      for name, rival in (rivals or {}).items()
      if (program := cleanup.enter_context(rival(run, args.subject)))
    }
    for fields in args.also:
      changed = programs.resolve_here(config_lib.changed(args.config, fields))
      others[fields] = programs.ours(changed, args.subject)
    ours = programs.ours(run, args.subject)
    limits = programs.ceilings(run)
    steps = {name: _repeated(x) for name, x in others.items()}
    steps = {'ours': _repeated(ours), **steps, **limits}
    found = timing.in_turn(steps, args.rounds)
  if args.profile:
    with jax.profiler.trace(args.profile):
      ours.seconds(_TRACED_STEPS)
    print(f'A trace for xprof or TensorBoard is in {args.profile}')
  facts, median = ours.facts, statistics.median(found['ours'])
  assert facts
  ceilings = {name: max(found[name]) for name in limits}
  result = {
    'devices': programs.describe_devices(run),
    'jax': jax.__version__,
    'subject': args.subject,
    'network': run.config['model.name'],
    'image_shape': list(run.image_shape),
    'dtype': run.config['model.dtype'],
    'batch_size': ours.batch_size,
    'compile_seconds': facts.seconds,
    **_counts(ours),
    'ms': timing.spread([1e3 * seconds for seconds in found['ours']]),
    'images_per_second': ours.batch_size / median,
    'ceilings': ceilings,
    'share_of_ceiling': {
      'arithmetic': facts.flops / median / ceilings['flops_per_second'],
      'memory': facts.accessed_bytes / median / ceilings['bytes_per_second'],
    },
    'against': {
      name: {
        'ratio': timing.ratio(found[name], found['ours']),
        'images_per_second': program.batch_size
        / statistics.median(found[name]),
        **_counts(program),
      }
      for name, program in others.items()
    },
  }
  _show(result)
  return result


def _counts(program: Program) -> dict[str, Any]:
  names = ('flops', 'accessed_bytes', 'peak_bytes')
  if facts := program.facts:
    return {name: getattr(facts, name) for name in names}
  return {'peak_bytes': program.peak_bytes}


def _repeated(program: Program) -> Any:
  """Returns a function that measures the mean step time over ROUND_SECONDS."""
  program.seconds(2)  # Warm-up.
  count = max(1, round(ROUND_SECONDS / program.seconds(1)))
  return lambda: program.seconds(count) / count


def _show(result: dict[str, Any]) -> None:
  ms, share = result['ms'], result['share_of_ceiling']
  ceiling = result['ceilings']
  shape = 'x'.join(map(str, result['image_shape']))
  print(
    f'{result["subject"]} of {result["network"]}, {result["dtype"]}, batch'
    f' {result["batch_size"]}, images {shape}, on {result["devices"]}'
    f' ({timing.machine()}), jax {result["jax"]}\n'
    f'  {result["images_per_second"]:,.1f} images/s, {ms["median"]:,.2f} ms'
    f' (quartiles {ms["low"]:,.2f} to {ms["high"]:,.2f}); compiled in'
    f' {result["compile_seconds"]:.1f} s\n'
    f'  memory {result["peak_bytes"] / 1e9:.2f} GB, as the compiler reports\n'
    f'  arithmetic {result["flops"] / 1e9:,.1f} GFLOP,'
    f' {share["arithmetic"]:.0%} of'
    f' {ceiling["flops_per_second"] / 1e9:,.0f} GFLOP/s (a large matrix'
    ' product)\n'
    f'  traffic {result["accessed_bytes"] / 1e9:,.2f} GB, {share["memory"]:.0%}'
    f' of {ceiling["bytes_per_second"] / 1e9:,.1f} GB/s (a large copy)'
  )
  for name, other in result['against'].items():
    ratio, rate = other['ratio'], other['images_per_second']
    print(
      f'  {ratio["median"]:.2f} times the steps/s of {name} (quartiles'
      f' {ratio["low"]:.2f} to {ratio["high"]:.2f}; {rate:,.1f} images/s)'
    )
