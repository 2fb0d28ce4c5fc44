"""Measures what the ingredients of modern recipes add to a step.

  PYTHONPATH=. python benchmarks/recipes.py
  PYTHONPATH=. python benchmarks/recipes.py --model=cifar_resnet20 --size=32

Times a step with RandAugment (two operations), with mixup or CutMix, with
random erasing of every image, and with all of them, in turn with the plain
step. Prints median ratios.
"""

import argparse
import json
import os
import statistics
import time

import jax
import numpy as np

from configs import fake
from resnet import experiment
from resnet.training.state import create_state
from resnet.training.step import jit_steps

_RAND = {'augment.operations': ('randaugment',)}
_ERASING = {
  'augment.operations': ('erasing',),
  'augment.erase_probability': 1.0,
}
_MIXING = {'augment.mixup_alpha': 0.2, 'augment.cutmix_alpha': 1.0}
RECIPES = {
  'plain': {},
  'RandAugment': _RAND,
  'mixup and cutmix': _MIXING,
  'erasing': _ERASING,
  'all': {
    **_MIXING,
    **_ERASING,
    'augment.operations': ('randaugment', 'erasing'),
  },
}


def _make(args, fields):
  """Returns a function that runs a step and waits for it."""
  config = fake.get_config()
  config.model.name = args.model
  config.batch_size = args.batch_size
  config.data.image_size = config.data.eval_resize = args.size
  config.log_every_steps = 100
  config.update_from_flattened_dict(fields)
  run = experiment.resolve(config, devices=jax.devices()[:1])
  steps = jit_steps(run.task, run.sharding)
  state = create_state(jax.random.key(0), run.task, run.image_shape)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(
      0, 256, (args.batch_size, args.size, args.size, 3), np.uint8
    ),
    'label': rng.integers(0, 10, args.batch_size, np.int32),
    'mask': np.ones(args.batch_size, bool),
  }
  batch = jax.device_put(batch, run.sharding.batch)
  holder = [jax.device_put(state, run.sharding.replicated)]

  def step():
    holder[0], metrics = steps.train(holder[0], batch)
    jax.block_until_ready(metrics)
    assert steps.train._cache_size() == 1

  return step


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', default='resnet50')
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument(
    '--only', nargs='+', choices=[*RECIPES], default=[*RECIPES]
  )
  parser.add_argument('--json', help='a file for the ratios')
  args = parser.parse_args()
  if args.rounds < 2:
    parser.error(f'--rounds={args.rounds}: quartiles need at least 2.')
  device = jax.devices()[0].device_kind
  print(
    f'{args.model}, {args.size} pixels, batch {args.batch_size}, {device},'
    f' {os.cpu_count()} cores, jax {jax.__version__}, {args.rounds} rounds'
  )
  names = ['plain', *(name for name in args.only if name != 'plain')]
  steps = {name: _make(args, RECIPES[name]) for name in names}
  seconds = {name: [] for name in names}
  for i in range(args.rounds + 1):
    for name, step in steps.items():
      start = time.perf_counter()
      step()
      if i:  # The first one compiles.
        seconds[name].append(time.perf_counter() - start)
  medians = {}
  for name in names[1:]:
    ratios = [
      with_it / without
      for with_it, without in zip(seconds[name], seconds['plain'], strict=True)
    ]
    low, median, high = statistics.quantiles(ratios, n=4)
    medians[name] = median
    print(
      f'{name}: {median:.3f} times the plain step'
      f' (quartiles {low:.3f} to {high:.3f})',
      flush=True,
    )
  if args.json:
    with open(args.json, 'w') as file:
      json.dump(medians, file)


if __name__ == '__main__':
  main()
