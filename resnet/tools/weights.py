"""Converts and inspects weights.

  python -m resnet.tools.weights inspect resnet50.safetensors
  python -m resnet.tools.weights convert runs/digits digits.safetensors
  python -m resnet.tools.weights convert runs/imagenet resnet50 --naming=timm

A SOURCE is a .safetensors, .pth, .msgpack, .npz or .h5 file with tensor names
of torchvision, timm, transformers, akamaster (CIFAR), Keras, Flax's ImageNet
example, jax-resnet or this code, hf-hub:OWNER/NAME@REVISION, an Orbax
checkpoint, or the workdir of a run, which stands for its best checkpoint. The
network is --model, else that of SOURCE.
"""

import argparse
import contextlib
import dataclasses
import math
import os
import re
from typing import Any

from resnet.data.sources.imagenet_names import readable_name
from resnet.errors import InputError
from resnet.export.repository import save_repository
from resnet.files import reading
from resnet.inference.network import check_channels
from resnet.models import create_model, list_models
from resnet.tools import command
from resnet.weights import (
  Metadata,
  Preprocessing,
  StoredWeights,
  check_stored,
  open_stored,
  read_stored,
  save_weights,
)
from resnet.weights.convert import count_classes, find_overrides
from resnet.weights.naming import NAMINGS

_PREPROCESSING = dataclasses.fields(Preprocessing)


def convert(args: argparse.Namespace) -> None:
  """Writes a source as a file of safetensors or a folder for the hub."""
  suffix = os.path.splitext(args.target)[1]
  if suffix in ('.pth', '.pt', '.bin', '.npz', '.h5', '.msgpack'):
    raise InputError(
      f'{args.target} must end in .safetensors, or be a new folder.'
    )
  source = open_stored(args.source)
  model = args.model or source.metadata.model
  if model is None:
    raise InputError(
      f'{source.name} does not name its network: type --model=NAME. It fits:'
      f' {", ".join(_fitting(source)) or "no known network"}.'
    )
  overrides = find_overrides(source, model)
  changes: dict[str, Any] = {'model': model, **overrides}
  fields = {f.name: getattr(args, f.name) for f in _PREPROCESSING}
  missing = [name for name, value in fields.items() if value is None]
  if not missing:
    with reading('The preprocessing is not valid'):
      changes['preprocessing'] = Preprocessing(**fields)
  elif len(missing) < len(fields):
    flags = ', '.join(f'--{name.replace("_", "-")}' for name in missing)
    raise InputError(f'The preprocessing is incomplete: add {flags}.')
  variables = read_stored(source, model, needs_head=False, **overrides)
  num_classes = count_classes(variables)
  if args.class_names:
    with (
      reading(f'{args.class_names} cannot be read'),
      open(args.class_names) as file,
    ):
      names = tuple(line.strip() for line in file if line.strip())
    if len(names) != num_classes:
      raise InputError(
        f'{args.class_names} has {len(names)} names for {num_classes} classes.'
      )
    changes['class_names'] = names
  metadata = dataclasses.replace(source.metadata, **changes)
  if metadata.preprocessing:
    check_channels(source.name, variables, metadata.preprocessing)
  save, default = save_repository, 'timm'
  if suffix == '.safetensors':
    save, default = save_weights, 'torchvision'
  naming = args.naming or default
  save(variables, args.target, metadata=metadata, naming=naming)
  print(f'{args.target}: {model}, {num_classes} classes')
  _print_naming(source)
  _print_metadata(metadata)


def inspect(args: argparse.Namespace) -> None:
  """Prints the contents of a source; reads no tensor."""
  source = open_stored(args.source)
  count = sum(math.prod(shape) for shape, _ in source.tensors.values())
  print(f'{source.name}: {len(source.tensors)} tensors, {count:,} numbers')
  _print_naming(source)
  _print_metadata(source.metadata)
  print(f'fits          {", ".join(_fitting(source)) or "no known network"}')
  if args.tensors:
    width = max(map(len, source.tensors), default=0)
    for name, (shape, dtype) in source.tensors.items():
      print(f'{name:{width}}  {dtype} {list(shape)}')


def _fitting(source: StoredWeights) -> list[str]:
  """Returns the names of the networks that have these tensors."""
  find = re.compile(source.naming.block).search
  blocks = {match.group() for match in map(find, source.tensors) if match}
  names = []
  for name in list_models():
    # Counting blocks is fast and saves tracing most networks.
    if sum(create_model(name).stage_sizes) == len(blocks):
      with contextlib.suppress(InputError):
        overrides = find_overrides(source, name)
        check_stored(source, name, needs_head=False, **overrides)
        names.append(name)
  return names


def _print_naming(source: StoredWeights) -> None:
  print(f'source names  {source.naming.name}')
  for text in source.remarks():
    print(f'note          {text}')


def _print_metadata(metadata: Metadata) -> None:
  fields = {'model': metadata.model, **metadata.overrides}
  if metadata.preprocessing:
    fields |= dataclasses.asdict(metadata.preprocessing)
  for name, value in fields.items():
    print(f'{name:13} {value if value is not None else "unknown"}')
  if metadata.ema is not None:
    print(f'weights       {"moving averages" if metadata.ema else "raw"}')
  if names := metadata.class_names:
    shown = ', '.join(map(readable_name, names[:3]))
    print(f'class_names   {shown} ... ({len(names)})')


def _floats(text: str) -> tuple[float, ...]:
  return tuple(map(float, text.split(',')))


def main(args: argparse.Namespace) -> None:
  """Runs the chosen command."""
  args.function(args)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('weights', __doc__)
  commands = result.add_subparsers(required=True, metavar='COMMAND')

  def add_command(function: Any) -> command.Parser:
    name, about = function.__name__, function.__doc__
    examples = [x for x in str(__doc__).splitlines() if f'weights {name}' in x]
    doc = '\n'.join([about, '', *examples])
    sub = commands.add_parser(name, help=about, doc=doc)
    sub.set_defaults(function=function)
    text = 'weights; python -m resnet.tools.weights --help lists the kinds'
    sub.add_argument('source', metavar='SOURCE', help=text)
    return sub

  sub = add_command(convert)
  add = sub.add_argument
  text = 'a file, or a new folder that timm or transformers can load'
  add('target', metavar='OUT[.safetensors]', help=text)
  text = 'default: the network that SOURCE names'
  add('--model', metavar='NAME', help=text)
  text = (
    f'names of the tensors: {", ".join(NAMINGS)}; default: torchvision for a'
    ' file, timm for a folder'
  )
  add('--naming', choices=tuple(NAMINGS), metavar='LIBRARY', help=text)
  add('--class-names', metavar='FILE', help='one name per line')
  group = sub.add_argument_group('preprocessing, if SOURCE has none')
  add = group.add_argument
  text = 'per channel, pixels 0 to 1: 0.5,0.5,0.5'
  add('--mean', type=_floats, metavar='X,X,X', help=text)
  add('--std', type=_floats, metavar='X,X,X', help='likewise')
  add('--image-size', type=int, metavar='N', help='pixels')
  text = '0.875 for 224 of 256 pixels'
  add('--crop-share', type=float, metavar='X', help=text)
  text, filters = 'bilinear or bicubic', ('bilinear', 'bicubic')
  add('--interpolation', choices=filters, metavar='FILTER', help=text)
  add = add_command(inspect).add_argument
  add('--tensors', action='store_true', help='list all tensors')
  return result


if __name__ == '__main__':
  command.run(main, parser())
