"""Prepares a TFDS set of grey images from idx files on disk.

  python -m resnet.tools.prepare fashion_mnist --idx=FOLDER

The files are those of MNIST and its kin, as Debian's package
dataset-fashion-mnist has them. Afterwards --config.data.name=fashion_mnist
finds the set.
"""

import argparse
import re
import time

import tensorflow_datasets as tfds

from resnet.data import idx
from resnet.errors import InputError
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  if not re.fullmatch('[a-z][a-z0-9_]*', args.name):
    raise InputError(
      f'{args.name!r} is no name of a set: small letters, digits, underscores.'
    )
  splits = idx.read_splits(args.idx)
  builder = idx.create_builder(args.name, splits, args.data_dir)
  if builder.info.splits:
    print(f'{args.name} is prepared already: {builder.data_dir}')
    return
  start = time.monotonic()
  tfds.disable_progress_bar()
  try:
    builder.download_and_prepare()
  except OSError as error:
    raise InputError(
      f'{builder.data_dir} cannot be written: {error.strerror or error}'
    ) from None
  counts = ', '.join(f'{len(v[1]):,} {name}' for name, v in splits.items())
  seconds = time.monotonic() - start
  print(f'{builder.data_dir}: {counts} images in {seconds:.0f} s')


def _parser() -> command.Parser:
  parser = command.Parser(
    prog='python -m resnet.tools.prepare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', metavar='NAME', help='of the set')
  parser.add_argument(
    '--idx', metavar='FOLDER', required=True, help='of the idx files'
  )
  parser.add_argument(
    '--data-dir', metavar='DIR', help="where TFDS keeps sets; default: TFDS's"
  )
  return parser


if __name__ == '__main__':
  command.run(main, _parser())
