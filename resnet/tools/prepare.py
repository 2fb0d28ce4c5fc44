"""Prepares a data set once, so that training reads it fast and safely.

  python -m resnet.tools.prepare --from=imagenet --source=FOLDER --out=DIR
  python -m resnet.tools.prepare --from=folder --source=PATH --out=DIR
  python -m resnet.tools.prepare --from=tfds --source=DIR/NAME/VERSION --out=DIR
  python -m resnet.tools.prepare --from=idx --source=FOLDER --out=DIR
  python -m resnet.tools.prepare --from=cifar --source=PATH --out=DIR

imagenet: the folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
folder: PATH/train/CLASS/FILE and PATH/val/CLASS/FILE, JPEG or PNG. tfds: a set
that is prepared already. idx: the files of MNIST and its kin. cifar: a binary
archive, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, or its folder.

Writes ArrayRecord in TFDS's layout to DIR/NAME/1.0.0, which training finds with
--config.data.name=NAME --config.data.data_dir=DIR. Every image is decoded,
every shard read back. After a stop or a kill the same command goes on; on a
finished set it compares the files with the manifest. TensorFlow is not needed.
"""

import argparse
import contextlib
import os
import re
from typing import Any

import tqdm

from resnet.data.host.decode import decode_record
from resnet.data.prepare import writer
from resnet.data.prepare.encoding import Encoding
from resnet.data.prepare.shards import Job
from resnet.data.sources import cifar, idx, imagenet, registry
from resnet.data.sources import folder as folder_lib
from resnet.errors import InputError, RunError
from resnet.files import Lock
from resnet.tools import command

# A function of --source and --name for each --from, which returns the splits.
_OPENERS = {
  'imagenet': imagenet.open_splits,
  'folder': folder_lib.open_splits,
  'tfds': registry.open_splits,
  'idx': idx.open_splits,
  'cifar': cifar.open_splits,
}
# Names of sets by --source, where it is not the last part of that.
_NAMES = {
  'imagenet': lambda _: imagenet.NAME,
  'cifar': cifar.default_name,
}
# Records of a split by which an unfinished set is compared with its source.
_NUM_COMPARED = 256


def main(args: argparse.Namespace) -> None:
  folder = os.path.join(args.out, _name(args), writer.VERSION)
  if os.path.isdir(folder):
    return _verify(args, folder)
  job = make_job(args)
  num_bytes = writer.estimate_bytes(job)
  writer.check_disk(job, num_bytes)
  parent = os.path.dirname(folder)
  with writer.disk(parent):
    os.makedirs(parent, exist_ok=True)
  with contextlib.closing(Lock(parent, 'or give another --out or --name')):
    if os.path.isdir(folder):  # Another command has just finished it.
      return _verify(args, folder)
    total = sum(map(len, job.splits.values()))
    with _bar(total, 'prepared') as bar, writer.disk(job.unfinished):
      manifest = writer.write(
        job, num_bytes, num_threads=args.threads, advance=bar.update
      )
  _check_by_tfds(args, folder, manifest)
  _say(folder, manifest)
  print(
    f'Train on it with: --config.data.name={job.name}'
    f' --config.data.data_dir={args.out}'
  )


def make_job(args: argparse.Namespace) -> Job:
  """Returns what the command line asks for; reads the sources' names.

  Raises:
    InputError: an argument or a source is wrong.
  """
  if args.threads < 1:
    raise InputError(f'--threads={args.threads} is too small: at least 1.')
  if not os.path.exists(args.source):
    raise InputError(
      f'--source={args.source} does not exist. See --help for what each --from'
      ' expects.'
    )
  name = _name(args)
  splits = _OPENERS[args.kind](args.source, name)
  first = next(iter(splits.values()))
  writer.check_class_names(first.class_names or ())
  origin = {'from': args.kind, 'source': os.path.abspath(args.source)}
  for split, source in splits.items():
    origin[split] = source.fingerprint(_NUM_COMPARED)
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
    origin=origin,
    skip_bad=args.skip_bad,
  )


def _name(args: argparse.Namespace) -> str:
  """Returns --name, or a name made of the last part of --source."""
  # Without the version of a prepared set.
  path = re.sub(r'/\d+\.\d+\.\d+$', '', os.path.normpath(args.source))
  name = re.sub('[^a-z0-9]+', '_', os.path.basename(path).lower()).strip('_')
  if args.kind in _NAMES:
    name = _NAMES[args.kind](path)
  name = args.name or name
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'{name!r} is no name of a set: small letters, digits, underscores, a'
      ' letter first: --name=NAME'
    )
  return name


def _verify(args: argparse.Namespace, folder: str) -> None:
  with _bar(None, 'compared') as bar:
    manifest = writer.verify(folder, bar.update)
  _check_by_tfds(args, folder, manifest)
  print('Prepared already; all files are as the manifest says.')
  _say(folder, manifest)


def _check_by_tfds(
  args: argparse.Namespace, folder: str, manifest: dict[str, Any]
) -> None:
  """Opens the finished set as training does.

  Raises:
    RunError: it is not what was written.
  """
  for split, count in manifest['examples'].items():
    source = registry.open_source(manifest['name'], split, data_dir=args.out)
    names = manifest['class_names']
    is_same = names is None or source.class_names == tuple(names)
    if len(source) != count or not is_same:
      raise RunError(
        f'{folder} does not open as it was written: {len(source)} images of'
        f' {split} for {count}, class names {source.class_names} for {names}.'
        ' Delete it and prepare it again.'
      )
    for index in (0, count - 1):
      (record,) = source.read([index])
      decode_record(source, index, record)


def _say(folder: str, manifest: dict[str, Any]) -> None:
  counts = ', '.join(f'{n:,} {s}' for s, n in manifest['examples'].items())
  for text in manifest['left_out']:
    print(f'left out: {text}')
  print(
    f'{folder}: {counts} images, {manifest["bytes"] / 1e6:,.1f} MB,'
    f' {len(manifest["shards"])} files, {writer.MANIFEST}'
  )


def _bar(total: int | None, what: str) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, unit=' images', desc=what, smoothing=0.05)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.prepare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  result.add_argument(
    '--from',
    dest='kind',
    required=True,
    choices=_OPENERS,
    help='what the source is',
  )
  for name, metavar, text in (
    ('--source', 'PATH', 'a folder'),
    ('--out', 'DIR', 'of prepared sets (data_dir)'),
  ):
    result.add_argument(name, metavar=metavar, required=True, help=text)
  result.add_argument(
    '--name', help="of the set; default: the source's last part"
  )
  result.add_argument(
    '--resize',
    metavar='SHORT_SIDE',
    type=int,
    help='shrink larger images to this shorter side, pixels, once and for all',
  )
  result.add_argument(
    '--quality',
    type=int,
    default=90,
    help='of JPEG after --resize, 1 to 100; default: %(default)s',
  )
  result.add_argument(
    '--raw',
    action='store_true',
    help='store pixels of one size; with --resize, of the central square',
  )
  result.add_argument(
    '--skip-bad',
    action='store_true',
    help='leave images that cannot be decoded out, and list them',
  )
  result.add_argument(
    '--threads',
    type=int,
    default=os.cpu_count() or 1,
    help='shards in work at a time; default: %(default)s',
  )
  return result


if __name__ == '__main__':
  command.run(main, parser())
