"""Measures how much the logits of exported networks differ from the network's.

  PYTHONPATH=. python benchmarks/exports.py NAME... [--size=224] --out=FILE.json

Exports networks with random weights, and running statistics of a random batch,
as StableHLO and ONNX, for normalised and for uint8 pixels. Prints the largest
difference of logits for 1 and 7 images, as a share of the largest logit, in
Markdown.
"""

import argparse
import json
import os
import tempfile

import jax

from resnet.export.export import export
from resnet.run.provenance import commit, hardware
from tests.networks import make_variables, with_metadata

_CLASSES = 1000


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='+')
  parser.add_argument('--size', type=int, default=224, help='pixels')
  parser.add_argument('--out', required=True)
  args = parser.parse_args()
  rows = []
  print('| network | format | pixels | 1 image | 7 images |')
  print('|---|---|---|---|---|')
  for name in args.names:
    size = 32 if name.startswith('cifar') else args.size
    made = make_variables(name, size=size, num_classes=_CLASSES)
    weights = with_metadata(name, *made, size=size)
    for format_ in ('stablehlo', 'onnx'):
      for inside in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
          manifest = export(
            weights,
            os.path.join(scratch, 'out'),
            format_=format_,
            platforms=['cpu'],
            with_preprocessing=inside,
          )
        differences = manifest['largest_relative_difference']
        pixels = manifest['input']['dtype']
        rows.append(
          {
            'network': name,
            'image_size': size,
            'format': format_,
            'pixels': pixels,
            'largest_relative_difference': differences,
          }
        )
        print(
          f'| {name}, {size} | {format_} | {pixels} |'
          f' {differences["1"]:.1e} | {differences["7"]:.1e} |',
          flush=True,
        )
  result = {
    'commit': commit(),
    'hardware': hardware(jax.devices()),
    'versions': manifest['versions'],
    'rows': rows,
  }
  with open(args.out, 'w') as file:
    json.dump(result, file, indent=2)


if __name__ == '__main__':
  main()
