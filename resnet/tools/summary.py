"""Networks as the papers' tables show them, counted from the traced program.

  python -m resnet.tools.summary resnet50
  python -m resnet.tools.summary resnet50_v1 resnet101_v1 --markdown
  python -m resnet.tools.summary --all

Of one image: multiply-adds of convolutions and dense layers, with one operation
besides for each multiplication and addition elsewhere (batch norm: two for each
element); activations are the elements that convolutions and dense layers write.
Training memory is an estimate for a batch: parameters, gradients and momentum,
and the inputs and outputs of convolutions, kept for the backward pass.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import tqdm

from resnet.errors import InputError
from resnet.models import cost as cost_lib
from resnet.models import create_model, layers, list_models
from resnet.models.cost import Network
from resnet.models.lecture import Bottleneck
from resnet.tools import command

_COLUMNS = ('parameters', 'multiply-adds', 'activations', 'training memory')


def main(args: argparse.Namespace) -> None:
  if args.all == bool(args.names):
    raise InputError('Name networks, or give --all, not both.')
  names = list_models() if args.all else args.names
  models = {name: create_model(name) for name in names}
  networks = {
    name: cost_lib.trace(
      name,
      # He et al. 2016: 224 pixels for the nets of Table 1, 32 for CIFAR's.
      args.image_size or (32 if model.num_classes == 10 else 224),
      dtype=jnp.dtype(args.dtype),
    )
    for name, model in tqdm.tqdm(models.items(), disable=None, leave=False)
  }
  if len(networks) == 1:
    ((name, network),) = networks.items()
    rows = _stage_rows(name, network, args.batch_size)
    header = ('stage', 'output', 'layers', *_COLUMNS)
  else:
    rows = [
      (name, str(network.image_size), *_figures(network, args.batch_size))
      for name, network in networks.items()
    ]
    header = ('network', 'image', *_COLUMNS)
  print(_table(header, rows, markdown=args.markdown))
  print(f'\nTraining memory: batch {args.batch_size}, {args.dtype}, estimated.')
  print(_bottleneck_note())


def _stage_rows(
  name: str, network: Network, batch_size: int
) -> list[tuple[str, ...]]:
  rows = []
  for part in network.costs:
    height, width = network.features.get(part, (1, 1))[:2]
    figures = _figures(network, batch_size, part)
    rows.append((part, f'{height}x{width}', _layers(network, part), *figures))
  return [*rows, (name, '', '', *_figures(network, batch_size))]


def _figures(
  network: Network, batch_size: int, part: str | None = None
) -> tuple[str, ...]:
  """Returns the cells of _COLUMNS, of the network or of one part."""
  cost = network.costs[part] if part else network.total
  return (
    f'{network.num_params(part):,}',
    f'{cost.multiply_adds / 1e9:.3f} G',
    f'{cost.activations / 1e6:.3f} M',
    f'{network.training_bytes(batch_size, part) / 1e9:.3f} GB',
  )


def _layers(network: Network, part: str) -> str:
  """Returns a cell of Table 1, such as '[1x1 64, 3x3 64, 1x1 256] x 3'."""
  if part == 'head':
    return f'average pool, dense {network.model.num_classes}'
  modules = {
    module: tree
    for module, tree in network.params.items()
    if module.startswith(f'{part}_')
  }
  cells = [_convs({m: t for m, t in modules.items() if '_conv' in m})]
  if part == 'stage1' and getattr(network.model, 'stem_pool', False):
    cells.append('3x3 max-pool')
  blocks = [
    _convs(tree) for module, tree in modules.items() if '_block' in module
  ]
  # Blocks that differ only in what they see are one in Table 1.
  cells += [
    f'[{text}] x {blocks.count(text)}' for text in dict.fromkeys(blocks)
  ]
  return '; '.join(filter(None, cells))


def _convs(modules: Any) -> str:
  """'1x1 128, 3x3 128 (groups 32), 1x1 256' of the convolutions in a row."""
  cells, channels = [], None
  for name, tree in sorted(modules.items()):
    if 'conv' not in name or 'shortcut' in name:
      continue
    height, width, inputs, filters = tree['kernel'].shape
    groups = channels // inputs if channels else 1
    suffix = f' (groups {groups})' if groups > 1 else ''
    cells.append(f'{height}x{width} {filters}{suffix}')
    channels = filters
  return ', '.join(cells)


def _table(
  header: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool
) -> str:
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  # Words to the left, numbers to the right.
  is_number = [cell[:1].isdigit() for cell in rows[-1]]
  left, right = ('| ', ' |') if markdown else ('', '')
  between = ' | ' if markdown else '  '

  def line(cells: Sequence[str]) -> str:
    padded = (
      cell.rjust(width) if number else cell.ljust(width)
      for cell, width, number in zip(cells, widths, is_number, strict=True)
    )
    return f'{left}{between.join(padded)}{right}'.rstrip()

  rule = [
    '-' * (width - number) + ':' * number
    for width, number in zip(widths, is_number, strict=True)
  ]
  return '\n'.join(
    [line(header), *([line(rule)] if markdown else []), *map(line, rows)]
  )


def _bottleneck_note() -> str:
  """Compares a bottleneck with the 3x3 convolution that it stands for."""
  channels, reduction = 256, 64
  x = jax.ShapeDtypeStruct((1, 1, 1, channels), jnp.float32)

  def cost(module: nn.Module) -> int:
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(module.apply)(variables, x).jaxpr
    return sum(c.conv_multiply_adds for c in cost_lib.count(jaxpr).values())

  bottleneck = cost(Bottleneck(reduction, channels))
  conv = cost(layers.conv(channels, 3, name='conv'))
  return (
    f'A bottleneck of {channels} channels costs'
    f' {bottleneck:,} = {reduction} x {bottleneck // reduction:,} multiply-adds'
    f' a position,\na 3x3 convolution of as many {conv:,} ='
    f' {channels} x {conv // channels:,}.'
  )


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.summary', description=__doc__
  )
  result.add_argument('names', nargs='*', metavar='NETWORK')
  result.add_argument('--all', action='store_true', help='all networks')
  result.add_argument(
    '--image-size', type=command.positive, help='pixels; default: its own'
  )
  result.add_argument(
    '--batch-size', type=command.positive, default=32, help='default: 32'
  )
  result.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the computation; default: float32',
  )
  result.add_argument('--markdown', action='store_true')
  return result


if __name__ == '__main__':
  command.run(main, parser())
