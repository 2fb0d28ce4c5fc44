"""Predicts the classes of images; writes features and class activation maps.

  python -m resnet.tools.predict cat.jpg
  predict='python -m resnet.tools.predict --weights=SOURCE'
  $predict one.png FOLDER --top=3
  $predict FOLDER --json --ten_crop
  $predict FOLDER --features=pooled --out=features.npz
  $predict one.png --explain=DIR --stage=stage3

A SOURCE is a workdir (its best checkpoint), an Orbax checkpoint, a .safetensors
or .pth file (see resnet.tools.weights), hf-hub:OWNER/NAME@REVISION, or a folder
from resnet.tools.export. Without --weights, it uses the packaged ResNet-20,
trained on CIFAR-10. Images are PNG or JPEG and are preprocessed as recorded
with the weights. Prints a line for each image.
"""

import argparse
import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import os
import sys
from typing import Any

import numpy as np
import tqdm

from resnet.errors import InputError, readable
from resnet.export.exported import open_network
from resnet.files import to_json, write_atomically, writing
from resnet.inference.features import write_features
from resnet.inference.images import decode_files, list_images
from resnet.inference.network import Network, add_arguments, source_of
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform, overlay
from resnet.output import ProgressBar
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Predicts, and prints or writes the results."""
  _check(args)
  files = list_images(args.images)
  name, count = collections.Counter(files.values()).most_common(1)[0]
  if args.explain and count > 1:
    raise InputError(
      f'{count} images are called {name}, so their maps would overwrite each'
      ' other: predict them one by one.'
    )
  network = open_network(source_of(args), args.model, args.dtype)
  transform = ImageTransform(
    preprocessing=network.preprocessing, views=args.views
  )
  maps = ['cam', *(f'gradcam_{stage}' for stage in args.stage)]
  outputs = [args.features or 'probabilities', *(maps if args.explain else [])]
  # Do not pad a few images to a whole batch.
  size = min(args.batch_size, len(files))
  predictor = Predictor(network, outputs, [size * transform.num_views])
  batches = _batches(args, transform, list(files))

  def results() -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields names [B] and outputs averaged over views; writes the maps."""
    for (names, crops), rows in predictor.stream(batches):
      for kind in outputs[1:]:
        heats = rows[kind][:: transform.num_views]  # First view only.
        for name, crop, heat in zip(names, crops, heats, strict=True):
          path = os.path.join(args.explain, f'{files[name]}.{kind}.png')
          with writing(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomically(path, overlay(crop, heat))
          _say(f'wrote {readable(path)}', sys.stderr)
      views = rows[outputs[0]]
      yield names, views.reshape(len(names), -1, *views.shape[1:]).mean(1)

  if args.features:
    write_features(args.out, results())
  else:
    for names, probabilities in results():
      _print(args, network, names, probabilities)


def _batches(
  args: argparse.Namespace, transform: ImageTransform, files: list[str]
) -> Iterator[tuple[tuple[list[str], np.ndarray], np.ndarray]]:
  """Yields (names [B], central crops [B, S, S, C]), and crops of all views."""
  bar = ProgressBar('read', len(files))
  with ThreadPoolExecutor(args.num_threads) as pool, bar:
    for start in range(0, len(files), args.batch_size):
      part = files[start : start + args.batch_size]
      images = []
      for _, image in decode_files(part, transform, pool):
        bar.update()
        images.append(image)
      yield (part, np.stack([i[0] for i in images])), np.concatenate(images)


def _print(
  args: argparse.Namespace, network: Network, files: list[str], rows: np.ndarray
) -> None:
  """Prints a line for each image: its classes, the most likely first."""
  for file, row in zip(files, rows, strict=True):
    if not np.all(np.isfinite(row)):
      _say(
        f'warning: the logits of {readable(file)} are not finite', sys.stderr
      )
    classes = network.top_classes(row, args.top)
    if args.json:
      line = to_json({'file': readable(file), 'classes': classes})
    else:
      line = readable(file) + ''.join(
        f'  {c["name"]} {c["probability"]:.4f}' for c in classes
      )
    _say(line, sys.stdout)


def _say(text: str, stream: Any) -> None:
  tqdm.tqdm.write(text, file=stream)  # Above the bar.


def _check(args: argparse.Namespace) -> None:
  if bool(args.features) != bool(args.out):
    raise InputError(
      '--features and --out need each other: type --features=pooled'
      ' --out=FILE.npz'
    )
  if args.features and (args.views != 'center' or args.json):
    raise InputError('--features excludes --flip, --ten_crop and --json.')
  if args.stage and not args.explain:
    raise InputError('--stage needs --explain=DIR.')


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('predict', __doc__)
  text = 'PNG or JPEG files, or folders of them'
  result.add_argument('images', metavar='IMAGE|FOLDER', nargs='+', help=text)
  add_arguments(result)
  result.set_defaults(views='center')
  views = result.add_argument_group('views')
  group = views.add_mutually_exclusive_group()
  shared: dict[str, Any] = {'action': 'store_const', 'dest': 'views'}
  text = 'average over the image and its mirror image'
  group.add_argument('--flip', const='flip', help=text, **shared)
  text = 'average over corners, centre, and their mirror images'
  flags = ('--ten-crop', '--ten_crop')
  group.add_argument(*flags, const='ten_crop', help=text, **shared)
  add = result.add_argument_group('output').add_argument
  count = {'type': command.positive, 'metavar': 'N'}
  add('--top', default=5, help='classes per image; default: 5', **count)
  add('--json', action='store_true', help='print a JSON object per image')
  add('--features', metavar='NAME', help='pooled, stem, stage1, ...')
  add('--out', metavar='FILE', help='file of the features: .npz')
  add('--explain', metavar='DIR', help='folder for class activation maps')
  text = 'with --explain: add Grad-CAM of this stage; may be repeated'
  add('--stage', action='append', default=[], metavar='stageN', help=text)
  add = result.add_argument_group('speed').add_argument
  text = 'images per batch; default: 32'
  add('--batch-size', default=32, help=text, **count)
  text = 'threads that decode images; default: 4'
  add('--num-threads', default=4, help=text, **count)
  return result


if __name__ == '__main__':
  command.run(main, parser())
