"""Converts a data set to ArrayRecord, once, for fast random access.

  python -m resnet.tools.prepare --from=KIND --source=PATH --out=DIR

imagenet: a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
folder: PATH/train/CLASS/FILE and PATH/val/CLASS/FILE, JPEG or PNG; val may
also be called validation or test. tfds: a prepared data set. idx: the folder of
MNIST or Fashion-MNIST files. cifar: a binary archive, cifar-10-binary.tar.gz or
cifar-100-binary.tar.gz, or its unpacked folder.

Writes ArrayRecord in TFDS's layout to DIR/NAME/1.0.0, which training finds with
--config.data.name=NAME --config.data.data_dir=DIR. Decodes every image and
reads back every shard. If interrupted, type the same command to continue. For a
finished set, compares the files with the manifest. TensorFlow is not needed.
"""

import argparse
import os
import re
from typing import Any

from resnet.data.host.decode import decode_record
from resnet.data.prepare import writer
from resnet.data.prepare.job import Encoding, Job, check_disk
from resnet.data.sources import cifar, idx, imagenet, registry
from resnet.data.sources import folder as folder_lib
from resnet.errors import InputError, RunError
from resnet.files import lock, writing
from resnet.output import ProgressBar
from resnet.tools import command

# Maps a value of --from to a function (source, name) -> splits.
_OPENERS = {
  'imagenet': imagenet.open_splits,
  'folder': folder_lib.open_splits,
  'tfds': registry.open_splits,
  'idx': idx.open_splits,
  'cifar': cifar.open_splits,
}
# Number of records per split in the fingerprint of an unfinished data set.
_NUM_COMPARED = 256


def main(args: argparse.Namespace) -> None:
  """Writes the data set, or verifies a finished one."""
  parent = os.path.join(args.out, _name(args))
  folder, manifest = os.path.join(parent, writer.VERSION), None
  if not os.path.isdir(folder):
    job = make_job(args)
    check_disk(job)
    with writing(parent):
      os.makedirs(parent, exist_ok=True)
    with lock(parent, 'or type another --out or --name'):
      if not os.path.isdir(folder):  # Another command may have finished it.
        count = sum(map(len, job.splits.values()))
        with ProgressBar('prepared', count) as bar:
          manifest = writer.write(
            job, num_threads=args.threads, advance=bar.update
          )
  if manifest is None:
    with ProgressBar('compared', None) as bar:
      manifest = writer.verify(folder, bar.update)
    print('Already prepared; all files match the manifest.')
  _check_by_tfds(args.out, folder, manifest)
  for text in manifest['left_out']:
    print(f'left out: {text}')
  counts = ', '.join(f'{n:,} {s}' for s, n in manifest['examples'].items())
  print(
    f'{folder}: {counts} images, {manifest["bytes"] / 1e6:,.1f} MB,'
    f' {len(manifest["shards"])} files, {writer.MANIFEST}\n'
    f'Train on it with: --config.data.name={manifest["name"]}'
    f' --config.data.data_dir={args.out}'
  )


def make_job(args: argparse.Namespace) -> Job:
  """Returns the splits, the encoding and the folder to write."""
  name = _name(args)
  splits = _OPENERS[args.kind](args.source, name)
  first = next(iter(splits.values()))
  for text in first.class_names or ():
    # TFDS stores the names in a file, one per line.
    if text.encode(errors='ignore').decode().strip().splitlines() != [text]:
      raise InputError(
        f'The class name {text!r} cannot be stored: it must be a line of UTF-8'
        ' without leading or trailing blanks; rename the class.'
      )
  return Job(
    name=name,
    folder=os.path.join(args.out, name, writer.VERSION),
    splits=splits,
    encoding=Encoding(
      channels=first.channels,
      resize=args.resize,
      quality=args.quality,
      raw=args.raw,
    ),
    origin={
      'from': args.kind,
      'source': os.path.abspath(args.source),
      **{name: x.fingerprint(_NUM_COMPARED) for name, x in splits.items()},
    },
    skip_bad=args.skip_bad,
  )


def _name(args: argparse.Namespace) -> str:
  """Returns --name, or a name derived from the last part of --source."""
  # Remove the version of a prepared set.
  path = re.sub(r'/\d+\.\d+\.\d+$', '', os.path.normpath(args.source))
  name = re.sub('[^a-z0-9]+', '_', os.path.basename(path).lower()).strip('_')
  defaults = {'imagenet': imagenet.NAME, 'cifar': cifar.default_name(path)}
  name = args.name or defaults.get(args.kind, name)
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'{name!r} is not a valid name: type --name=NAME with lower-case letters,'
      ' digits and underscores, starting with a letter.'
    )
  return name


def _check_by_tfds(out: str, folder: str, manifest: dict[str, Any]) -> None:
  """Opens the finished set as training does."""
  for split, count in manifest['examples'].items():
    source = registry.open_source(manifest['name'], split, data_dir=out)
    names = manifest['class_names']
    is_same = names is None or source.class_names == tuple(names)
    if len(source) != count or not is_same:
      raise RunError(
        f'{folder} cannot be read back: {split} has {len(source)} images, not'
        f' {count}; class names {source.class_names} instead of {names}.'
        ' Delete it and prepare it again.'
      )
    for index in (0, count - 1):
      decode_record(source, index, source.records[index])


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('prepare', __doc__)
  add = result.add_argument_group('source').add_argument
  text = 'kind of source'
  add('--from', dest='kind', required=True, choices=_OPENERS, help=text)
  add('--source', required=True, metavar='PATH', help='a folder or file')
  text = 'skip and list images that cannot be decoded'
  add('--skip-bad', action='store_true', help=text)
  add = result.add_argument_group('result').add_argument
  text = 'folder for prepared data sets (data_dir)'
  add('--out', required=True, metavar='DIR', help=text)
  text = 'name of the set; default: the last part of --source'
  add('--name', help=text)
  text = 'shrink images to this shorter side, in pixels, if theirs is longer'
  add('--resize', metavar='SHORT_SIDE', type=int, help=text)
  text = 'JPEG quality of resized images, 1 to 100; default: %(default)s'
  add('--quality', type=int, default=90, metavar='N', help=text)
  text = 'store pixels, not files; if sizes differ, add --resize (crops square)'
  add('--raw', action='store_true', help=text)
  text = 'shards to write in parallel; default: %(default)s'
  cores = os.cpu_count() or 1
  count = {'type': command.positive, 'metavar': 'N'}
  add('--threads', default=cores, help=text, **count)
  return result


if __name__ == '__main__':
  command.run(main, parser())
