"""Prepares a data set once, so that training reads it fast and safely.

  python -m resnet.tools.prepare --from=KIND --source=PATH --out=DIR

imagenet: the folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
folder: PATH/train/CLASS/FILE and PATH/val/CLASS/FILE, JPEG or PNG; val may be
validation or test, too. tfds: a set that is prepared already. idx: the files of
MNIST and its kin. cifar: a binary archive, cifar-10-binary.tar.gz or
cifar-100-binary.tar.gz, or its folder.

Writes ArrayRecord in TFDS's layout to DIR/NAME/1.0.0, which training finds with
--config.data.name=NAME --config.data.data_dir=DIR. Every image is decoded,
every shard read back. After a stop or a kill the same command continues; on a
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
from resnet.data.prepare.job import Encoding, Job, check_disk
from resnet.data.sources import cifar, idx, imagenet, registry
from resnet.data.sources import folder as folder_lib
from resnet.errors import InputError, RunError
from resnet.files import Lock, writing
from resnet.tools import command

# A function of --source and --name for each --from, which returns the splits.
_OPENERS = {
  'imagenet': imagenet.open_splits,
  'folder': folder_lib.open_splits,
  'tfds': registry.open_splits,
  'idx': idx.open_splits,
  'cifar': cifar.open_splits,
}
# Records of a split by which an unfinished set is compared with its source.
_NUM_COMPARED = 256


def main(args: argparse.Namespace) -> None:
  parent = os.path.join(args.out, _name(args))
  folder, manifest = os.path.join(parent, writer.VERSION), None
  if not os.path.isdir(folder):
    job = make_job(args)
    check_disk(job)
    with writing(parent):
      os.makedirs(parent, exist_ok=True)
    with contextlib.closing(Lock(parent, 'or give another --out or --name')):
      if not os.path.isdir(folder):  # Another command may have finished it.
        with _bar('prepared', sum(map(len, job.splits.values()))) as bar:
          manifest = writer.write(
            job, num_threads=args.threads, advance=bar.update
          )
  if manifest is None:
    with _bar('compared') as bar:
      manifest = writer.verify(folder, bar.update)
    print('Prepared already; all files are as the manifest says.')
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
  """Returns what the command line asks for."""
  name = _name(args)
  splits = _OPENERS[args.kind](args.source, name)
  first = next(iter(splits.values()))
  for text in first.class_names or ():
    # TFDS reads the names back from a file of one name a line.
    if text.encode(errors='ignore').decode().strip().splitlines() != [text]:
      raise InputError(
        f'The class name {text!r} is not one line of UTF-8 without blanks'
        ' around it, and a prepared set cannot hold it: rename the class.'
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
  """Returns --name, or a name made of the last part of --source."""
  # Without the version of a prepared set.
  path = re.sub(r'/\d+\.\d+\.\d+$', '', os.path.normpath(args.source))
  name = re.sub('[^a-z0-9]+', '_', os.path.basename(path).lower()).strip('_')
  if args.kind == 'imagenet':
    name = imagenet.NAME
  elif args.kind == 'cifar':
    name = cifar.default_name(path)
  name = args.name or name
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'{name!r} is no name of a set: small letters, digits, underscores, a'
      ' letter first: --name=NAME'
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
        f'{folder} does not open as it was written: {len(source)} images of'
        f' {split} for {count}, class names {source.class_names} for {names}.'
        ' Delete it and prepare it again.'
      )
    for index in (0, count - 1):
      decode_record(source, index, source.records[index])


def _bar(what: str, total: int | None = None) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, unit=' images', desc=what, smoothing=0.05)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('prepare', __doc__)
  add = result.add_argument
  text = 'the kind of source'
  add('--from', dest='kind', required=True, choices=_OPENERS, help=text)
  add('--source', required=True, metavar='PATH', help='a folder or file')
  text = 'of prepared sets (data_dir)'
  add('--out', required=True, metavar='DIR', help=text)
  add('--name', help="of the set; default: the source's last part")
  text = 'shrink larger images to this shorter side, pixels, once and for all'
  add('--resize', metavar='SHORT_SIDE', type=int, help=text)
  text = 'of JPEG after --resize, 1 to 100; default: %(default)s'
  add('--quality', type=int, default=90, help=text)
  text = 'store pixels of one size; with --resize, of the central square'
  add('--raw', action='store_true', help=text)
  text = 'leave images that cannot be decoded out, and list them'
  add('--skip-bad', action='store_true', help=text)
  text, cores = 'shards in work at a time; default: %(default)s', os.cpu_count()
  add('--threads', type=command.positive, default=cores or 1, help=text)
  return result


if __name__ == '__main__':
  command.run(main, parser())
