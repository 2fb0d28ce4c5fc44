"""What is in a picture: the likeliest classes, features, maps.

  predict='python -m resnet.tools.predict --weights=SOURCE'
  $predict one.png FOLDER --top=3
  $predict FOLDER --json --ten_crop
  $predict FOLDER --features=pooled --out=features.npz
  $predict one.png --explain=DIR --stage=stage3

A SOURCE is a workdir (its best checkpoint), an Orbax checkpoint, a .safetensors
file in the names of torchvision or timm, hf-hub:OWNER/NAME@REVISION, or a
folder of resnet.tools.export. Images are PNG or JPEG, prepared as is recorded
with the weights. A line each on stdout.
"""

import argparse
from collections.abc import Iterator
import contextlib
import os
import sys
from typing import Any

import numpy as np
import tqdm

from resnet.errors import InputError, readable
from resnet.export.exported import is_exported, open_exported
from resnet.files import to_json, write_atomically
from resnet.inference.features import FeaturesFile
from resnet.inference.images import (
  decode_ahead,
  in_batches,
  list_images,
  name_targets,
)
from resnet.inference.network import (
  Network,
  add_arguments,
  create_network,
  read_weights,
)
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform, overlay
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Predicts; told apart from the parser for tests."""
  _check(args)
  files = list_images(args.images)
  maps = name_targets(args.images, files, args.explain) if args.explain else {}
  network = _open(args)
  transform = ImageTransform(
    preprocessing=network.preprocessing, views=_views(args)
  )
  outputs = ['probabilities']
  if args.features:
    outputs = [args.features]
  if args.explain:
    outputs += ['cam', *(f'gradcam_{stage}' for stage in args.stage)]
  # One image does not wait for the padding of many.
  size = min(args.batch_size, len(files))
  predictor = Predictor(network, outputs, [size * transform.num_views])
  if args.explain:
    _make_folders(maps.values())
  writer = FeaturesFile(args.out) if args.features else None
  with writer or contextlib.nullcontext():
    for names, images, results in _results(args, predictor, transform, files):
      if writer:
        writer.write(names, results[args.features])
      else:
        _print(args, network, names, results['probabilities'])
      for row, name in enumerate(names if args.explain else []):
        for kind in outputs[1:]:
          picture = overlay(images[row], results[kind][row])
          write_atomically(f'{maps[name]}.{kind}.png', picture)


def _open(args: argparse.Namespace) -> Network:
  if is_exported(args.weights):
    return open_exported(args.weights)
  return create_network(
    read_weights(args.weights, args.model, dtype=args.dtype)
  )


def _results(
  args: argparse.Namespace,
  predictor: Predictor,
  transform: ImageTransform,
  files: list[str],
) -> Iterator[tuple[list[str], np.ndarray, dict[str, np.ndarray]]]:
  """Yields names [B], central crops [B, S, S, C], and means over the views.

  Maps are those of the central crop: the first view.
  """
  views = transform.num_views
  batch_size = predictor.batch_sizes[-1] // views
  decoded = decode_ahead(
    files, transform, num_threads=args.num_threads, ahead=2 * batch_size
  )

  def good() -> Iterator[tuple[str, np.ndarray]]:
    # Only for people: nothing where stderr is a file.
    with tqdm.tqdm(
      total=len(files), unit=' images', disable=_quiet(files), file=sys.stderr
    ) as bar:
      for name, image in decoded:
        bar.update()
        if not isinstance(image, InputError):
          yield name, image
        elif args.on_bad_image == 'error':
          raise image
        else:
          bar.write(f'left out: {image}', file=sys.stderr)

  def batches() -> Iterator[tuple[Any, np.ndarray]]:
    for names, images in in_batches(good(), batch_size):
      yield (names, images[::views]), images

  for (names, images), results in predictor.stream(batches()):
    by_view = {
      key: value.reshape(len(names), views, *value.shape[1:])
      for key, value in results.items()
    }
    yield (
      names,
      images,
      {
        key: value.mean(1) if key == 'probabilities' else value[:, 0]
        for key, value in by_view.items()
      },
    )


def _quiet(files: list[str]) -> bool:
  return len(files) == 1 or not sys.stderr.isatty()


def _print(
  args: argparse.Namespace,
  network: Network,
  files: list[str],
  probabilities: np.ndarray,
) -> None:
  """Prints a line for each image: its likeliest classes, the first first."""
  for file, row in zip(files, probabilities, strict=True):
    if not np.all(np.isfinite(row)):
      tqdm.tqdm.write(
        f'warning: the logits of {readable(file)} are not finite',
        file=sys.stderr,
      )
    # Of equal ones the first, as argmax has it.
    order = np.argsort(-row, kind='stable')[: args.top]
    classes = [
      {
        'index': int(index),
        'name': network.class_names[index],
        'probability': float(row[index]),
      }
      for index in order
    ]
    if args.json:
      line = to_json({'file': readable(file), 'classes': classes})
    else:
      line = readable(file) + ''.join(
        f'  {c["name"]} {c["probability"]:.4f}' for c in classes
      )
    tqdm.tqdm.write(line, file=sys.stdout)


def _views(args: argparse.Namespace) -> str:
  return 'ten_crop' if args.ten_crop else 'flip' if args.flip else 'center'


def _check(args: argparse.Namespace) -> None:
  for name in ('top', 'batch_size', 'num_threads'):
    if getattr(args, name) < 1:
      raise InputError(
        f'--{name.replace("_", "-")}={getattr(args, name)} must be positive.'
      )
  if args.flip and args.ten_crop:
    raise InputError('--ten_crop flips already: leave --flip out.')
  if bool(args.features) != bool(args.out):
    raise InputError(
      'Features need a file: --features=pooled --out=FILE.npz, or'
      ' --out=FILE.parquet.'
    )
  if args.features and (args.flip or args.ten_crop or args.json):
    raise InputError(
      '--features writes those of the central crop and prints nothing: leave'
      ' --flip, --ten_crop and --json out.'
    )
  if args.stage and not args.explain:
    raise InputError('--stage needs --explain=DIR.')


def _make_folders(paths: Any) -> None:
  for folder in {os.path.dirname(path) for path in paths}:
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError as error:
      raise InputError(f'{folder} cannot be made: {error.strerror}.') from None


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = result.add_argument
  add('images', metavar='IMAGE|FOLDER', nargs='+')
  add_arguments(result)
  add('--top', type=int, default=5, help='classes a line')
  add('--json', action='store_true', help='a JSON object a line')
  add('--flip', action='store_true', help='average with the mirror image')
  add(
    '--ten-crop',
    '--ten_crop',
    action='store_true',
    help='average over corners, centre, and their mirror images',
  )
  add('--features', metavar='NAME', help='pooled, stem, stage1, ...')
  add('--out', metavar='FILE', help='of the features: .npz or .parquet')
  add('--explain', metavar='DIR', help='for the class activation maps')
  add(
    '--stage',
    action='append',
    default=[],
    metavar='stageN',
    help='with --explain: Grad-CAM of this stage too; may be repeated',
  )
  add('--batch-size', type=int, default=32, help='images')
  add('--num-threads', type=int, default=4, help='that decode')
  add(
    '--on-bad-image',
    choices=('error', 'skip'),
    default='error',
    help='skip: leave out what is no image, and say so on stderr',
  )
  return result


if __name__ == '__main__':
  command.run(main, parser())
