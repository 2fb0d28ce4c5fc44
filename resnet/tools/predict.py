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
from concurrent.futures import ThreadPoolExecutor
import os
import sys
from typing import Any

import numpy as np
import tqdm

from resnet.errors import InputError, readable
from resnet.export.exported import open_network
from resnet.files import to_json, write_atomically
from resnet.inference.features import write_features
from resnet.inference.images import (
  check_names_differ,
  decode_files,
  list_images,
)
from resnet.inference.network import Network, add_arguments
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform, overlay
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Predicts, and prints or writes the results."""
  _check(args)
  files = list_images(args.images)
  if args.explain:
    check_names_differ(files)
  network = open_network(args.weights, args.model, args.dtype)
  transform = ImageTransform(
    preprocessing=network.preprocessing, views=args.views
  )
  maps = ['cam', *(f'gradcam_{stage}' for stage in args.stage)]
  outputs = [args.features or 'probabilities', *(maps if args.explain else [])]
  # One image does not wait for the padding of many.
  size = min(args.batch_size, len(files))
  predictor = Predictor(network, outputs, [size * transform.num_views])
  batches = _batches(args, transform, list(files))

  def results() -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields names [B] and the first of the outputs; writes the others."""
    for (names, crops), rows in _predict(predictor, transform, batches):
      for kind in outputs[1:]:
        for name, crop, heat in zip(names, crops, rows[kind], strict=True):
          path = os.path.join(args.explain, f'{files[name]}.{kind}.png')
          _write_picture(path, overlay(crop, heat))
      yield names, rows[outputs[0]]

  if args.features:
    write_features(args.out, results())
  else:
    for names, probabilities in results():
      _print(args, network, names, probabilities)


def _batches(
  args: argparse.Namespace, transform: ImageTransform, files: list[str]
) -> Iterator[tuple[tuple[list[str], np.ndarray], np.ndarray]]:
  """Yields names [B] and central crops [B, S, S, C], and all crops."""
  # Only for people: nothing where stderr is a file.
  is_quiet = len(files) == 1 or not sys.stderr.isatty()
  with (
    ThreadPoolExecutor(args.num_threads) as pool,
    tqdm.tqdm(
      total=len(files), unit=' images', disable=is_quiet, file=sys.stderr
    ) as bar,
  ):
    for start in range(0, len(files), args.batch_size):
      part = files[start : start + args.batch_size]
      names, images = [], []
      for name, image in decode_files(part, transform, pool):
        bar.update()
        if not isinstance(image, InputError):
          names.append(name)
          images.append(image)
        elif args.on_bad_image == 'error':
          raise image
        else:
          bar.write(f'left out: {image}', file=sys.stderr)
      if names:
        yield (names, np.stack([i[0] for i in images])), np.concatenate(images)


def _predict(
  predictor: Predictor, transform: ImageTransform, batches: Any
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
  """Yields probabilities as means over the views, the rest of the first."""
  for key, rows in predictor.stream(batches):
    by_view = {
      name: value.reshape(-1, transform.num_views, *value.shape[1:])
      for name, value in rows.items()
    }
    yield (
      key,
      {
        name: value.mean(1) if name == 'probabilities' else value[:, 0]
        for name, value in by_view.items()
      },
    )


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
    classes = network.top_classes(row, args.top)
    if args.json:
      line = to_json({'file': readable(file), 'classes': classes})
    else:
      line = readable(file) + ''.join(
        f'  {c["name"]} {c["probability"]:.4f}' for c in classes
      )
    tqdm.tqdm.write(line, file=sys.stdout)


def _check(args: argparse.Namespace) -> None:
  if bool(args.features) != bool(args.out):
    raise InputError(
      'Features need a file: --features=pooled --out=FILE.npz, or'
      ' --out=FILE.parquet.'
    )
  if args.features and (args.views != 'center' or args.json):
    raise InputError(
      '--features writes those of the central crop and prints nothing: leave'
      ' --flip, --ten_crop and --json out.'
    )
  if args.stage and not args.explain:
    raise InputError('--stage needs --explain=DIR.')


def _write_picture(path: str, picture: bytes) -> None:
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, picture)
  except OSError as error:
    raise InputError(f'{path} cannot be written: {error.strerror}.') from None


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.predict', description=__doc__
  )
  add = result.add_argument
  add('images', metavar='IMAGE|FOLDER', nargs='+')
  add_arguments(result)
  add('--top', type=command.positive, default=5, help='classes a line')
  add('--json', action='store_true', help='a JSON object a line')
  views = result.add_mutually_exclusive_group()
  views.add_argument(
    '--flip',
    action='store_const',
    const='flip',
    default='center',
    dest='views',
    help='average with the mirror image',
  )
  views.add_argument(
    '--ten-crop',
    '--ten_crop',
    action='store_const',
    const='ten_crop',
    dest='views',
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
  add('--batch-size', type=command.positive, default=32, help='images')
  add('--num-threads', type=command.positive, default=4, help='that decode')
  add(
    '--on-bad-image',
    choices=('error', 'skip'),
    default='error',
    help='skip: leave out what is no image, and say so on stderr',
  )
  return result


if __name__ == '__main__':
  command.run(main, parser())
