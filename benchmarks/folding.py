"""Compares inference with and without folded batch norms on this machine.

  PYTHONPATH=. python benchmarks/folding.py [NAME...] [--json=FILE]

Random weights, logits of uint8 images (32 pixels for CIFAR nets, 224 for
others), compiled as for prediction. The two programs take turns. Prints
images/s and the median ratio of measurements of the same round, with quartiles.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from resnet.tools import command
from resnet.tools.benchmark import programs, timing
from resnet.training import compiler
from tests.networks import draw_variables, with_metadata


def measure(weights, batch_size, args):
  """Returns the figures of one network and batch size."""
  shape = (batch_size, *weights.preprocessing.image_shape)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  images = jax.device_put(images)
  programs_ = {
    'unfolded': open_program(weights, images, args.seconds),
    'folded': open_program(weights.folded(), images, args.seconds),
  }
  found = timing.in_turn(programs_, args.rounds)
  return {
    'network': weights.model_name,
    'batch_size': batch_size,
    'images_per_second': {
      name: timing.spread([batch_size / x for x in seconds])
      for name, seconds in found.items()
    },
    'ratio': timing.ratio(found['unfolded'], found['folded']),
  }


def open_program(weights, images, seconds):
  """Returns a function that measures the seconds for a batch."""
  variables = jax.device_put(weights.variables)
  program = compile_logits(weights, images)
  timed = programs.timed(lambda _: (None, program(variables, images)), None)
  timed(2)  # Warm-up.
  count = max(1, round(seconds / timed(1)))
  return lambda: timed(count) / count


def compile_logits(weights, images):
  """Compiles the function: variables and images -> logits."""
  options = compiler.options(jax.default_backend())
  jitted = jax.jit(weights.logits, compiler_options=options)
  return jitted.lower(weights.variables, images).compile()


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  add = parser.add_argument
  add('names', nargs='*', default=['cifar_resnet20', 'resnet50'])
  add('--size', type=command.positive, default=224, help='pixels')
  add('--batch-sizes', default='1,32')
  add('--dtype', default='float32', help='of the computation')
  add('--seconds', type=float, default=1.0, help='duration of a measurement')
  timing.add_arguments(parser, {'rounds': 15})
  args = parser.parse_args()
  rows = []
  print('| network, pixels | batch | unfolded | folded | ratio (quartiles) |')
  print('|---|---|---|---|---|')
  for name in args.names:
    size = 32 if name.startswith('cifar') else args.size
    made = draw_variables(
      name, size=size, num_classes=1000, dtype=jnp.dtype(args.dtype)
    )
    weights = with_metadata(name, *made, size=size)
    for batch_size in map(int, args.batch_sizes.split(',')):
      row = measure(weights, batch_size, args)
      rows.append(row)
      rates, ratio = row['images_per_second'], row['ratio']
      print(
        f'| {name}, {size} | {batch_size} | {rates["unfolded"]["median"]:,.1f}'
        f' | {rates["folded"]["median"]:,.1f} | **{ratio["median"]:.2f}**'
        f' ({ratio["low"]:.2f} to {ratio["high"]:.2f}) |',
        flush=True,
      )
  timing.save_figures(args.json, {'rows': rows})


if __name__ == '__main__':
  main()
