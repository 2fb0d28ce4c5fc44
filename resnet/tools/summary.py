"""Prints tables of networks as in the papers, by tracing, not running, them.

  python -m resnet.tools.summary resnet50
  python -m resnet.tools.summary resnet50_v1 resnet101_v1 --markdown
  python -m resnet.tools.summary --all

Multiply-adds and activations are for one image. Multiply-adds are those of
convolutions and dense layers, plus one for each multiplication or addition in
other layers (batch norm: two per element). Activations are the output elements
of convolutions and dense layers. Training memory is an estimate for a batch:
parameters, gradients, momentum, and the inputs and outputs of convolutions and
dense layers, which the backward pass needs.
"""

import argparse
from typing import Any

import jax.numpy as jnp

from resnet.errors import InputError
from resnet.models import cost as cost_lib
from resnet.models import create_model, list_models
from resnet.models.cost import NetworkCost
from resnet.output import ProgressBar
from resnet.tools import command

_COLUMNS = ['parameters', 'multiply-adds', 'activations', 'training memory']


def main(args: argparse.Namespace) -> None:
  """Traces the networks and prints their table."""
  if args.all == bool(args.names):
    raise InputError('Type the names of networks or --all, but not both.')
  names = list_models() if args.all else args.names
  networks = {}
  with ProgressBar('traced', len(names), 'networks') as bar:
    for name in names:
      # He et al. 2016 use 224 pixels for ImageNet and 32 for CIFAR.
      side = 32 if create_model(name).num_classes == 10 else 224
      networks[name] = cost_lib.trace(
        name, args.image_size or side, dtype=jnp.dtype(args.dtype)
      )
      bar.update()
  rows = [('network', 'image', *_COLUMNS)]
  for name, network in networks.items():
    figures = _figures(network, args.batch_size)
    rows.append((name, str(network.image_size), *figures))
  tables = [rows]
  if len(networks) == 1:
    ((name, network),) = networks.items()
    stages = [('stage', 'output', 'layers', *_COLUMNS)]
    for part in network.costs:
      height, width = network.features.get(part, (1, 1))[:2]
      figures = _figures(network, args.batch_size, part)
      layers = _layers(network, part)
      stages.append((part, f'{height}x{width}', layers, *figures))
    stages.append((name, '', '', *_figures(network, args.batch_size)))
    # In Markdown, its row of the table of all networks follows.
    tables = [stages, rows] if args.markdown else [stages]
  print('\n\n'.join(command.table(x, markdown=args.markdown) for x in tables))
  print(f'\nTraining memory: batch {args.batch_size}, {args.dtype}, estimated.')


def _figures(
  network: NetworkCost, batch_size: int, part: str | None = None
) -> tuple[str, ...]:
  """Returns the values of _COLUMNS for the network or one part of it."""
  cost = network.costs[part] if part else network.total
  return (
    f'{network.num_params(part):,}',
    f'{cost.multiply_adds / 1e9:.3f} G',
    f'{cost.activations / 1e6:.3f} M',
    f'{network.training_bytes(batch_size, part) / 1e9:.3f} GB',
  )


def _layers(network: NetworkCost, part: str) -> str:
  """Returns layers as in He et al.'s Table 1: '[3x3 64, 3x3 64] x 2'."""
  if part == 'head':
    return f'average pool, dense {network.model.num_classes}'
  params = network.params.items()
  texts = [_convs({m: t for m, t in params if m.startswith(f'{part}_conv')})]
  if part == 'stage1' and getattr(network.model, 'stem_pool', False):
    texts.append('3x3 max-pool')
  blocks = [_convs(tree) for m, tree in params if m.startswith(f'{part}_block')]
  # The table joins blocks that differ only in the shape of their input.
  texts += [f'[{x}] x {blocks.count(x)}' for x in dict.fromkeys(blocks)]
  return '; '.join(filter(None, texts))


def _convs(modules: Any) -> str:
  """Returns successive convolutions: '1x1 128, 3x3 128 (groups 32)'."""
  texts, channels = [], None
  for name, tree in sorted(modules.items()):
    if 'conv' not in name or 'shortcut' in name:
      continue
    height, width, inputs, filters = tree['kernel'].shape
    groups = channels // inputs if channels else 1
    suffix = f' (groups {groups})' if groups > 1 else ''
    texts.append(f'{height}x{width} {filters}{suffix}')
    channels = filters
  return ', '.join(texts)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('summary', __doc__)
  add = result.add_argument
  text = 'name, such as resnet50'
  add('names', nargs='*', metavar='NETWORK', help=text)
  add('--all', action='store_true', help='all networks')
  add(
    '--image-size',
    type=command.positive,
    metavar='N',
    help='pixels; default: 224, or 32 for CIFAR networks',
  )
  add(
    '--batch-size',
    type=command.positive,
    default=32,
    metavar='N',
    help='images of a training batch; default: 32',
  )
  text, dtypes = 'for the memory; default: float32', ('float32', 'bfloat16')
  add('--dtype', choices=dtypes, default='float32', help=text)
  add('--markdown', action='store_true', help='print a Markdown table')
  return result


if __name__ == '__main__':
  command.run(main, parser())
