"""Exports a trained network as StableHLO, ONNX or OpenVINO.

  export='python -m resnet.tools.export --weights=SOURCE'
  $export --format=stablehlo --platforms=cpu,cuda,tpu --out=DIR
  $export --format=onnx --with-preprocessing --out=DIR

Writes a program for any batch size, its weights and manifest.json (class names,
preprocessing, versions, checksums) to DIR, once its logits match the network's
within 1e-5 of the largest one, and, for StableHLO on a CPU, bit for bit those
of the network with batch norms folded into its convolutions.
`resnet.tools.predict --weights=DIR` runs the program.
"""

import argparse

from resnet.export import formats
from resnet.export.export import export
from resnet.inference.network import add_arguments, read_weights, source_of
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Exports and prints the largest difference from the network."""
  manifest = export(
    read_weights(source_of(args), args.model),
    args.out,
    format_=args.format,
    platforms=args.platforms.split(','),
    with_preprocessing=args.with_preprocessing,
  )
  shape = ', '.join(map(str, manifest['input']['shape']))
  print(
    f'{args.out}: {manifest["model"]} as {args.format},'
    f' {manifest["input"]["dtype"]} [{shape}] -> logits [batch,'
    f' {len(manifest["class_names"])}]'
  )
  for batch, difference in manifest['largest_relative_difference'].items():
    print(f'  batch {batch}: differs from the network by {difference:.1e}')


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('export', __doc__)
  add_arguments(result, with_dtype=False)
  add = result.add_argument_group('program').add_argument
  needs = (formats.get_format(name).HELP for name in formats.NAMES)
  needs = '; '.join(filter(None, needs))
  add('--format', choices=formats.NAMES, required=True, help=needs)
  add('--out', metavar='DIR', required=True, help='a new folder')
  text = 'for StableHLO: cpu,cuda,tpu; default: cpu'
  add('--platforms', default='cpu', metavar='NAME,NAME,...', help=text)
  text = 'let the program take uint8 pixels and normalise them'
  add('--with-preprocessing', action='store_true', help=text)
  return result


if __name__ == '__main__':
  command.run(main, parser())
