"""Prepares a data set once, so that training reads it fast and safely.

  python -m resnet.tools.prepare --from=imagenet --source=FOLDER --out=DIR
  python -m resnet.tools.prepare --from=folder --source=PATH --out=DIR
  python -m resnet.tools.prepare --from=tfds --source=DIR/NAME/VERSION --out=DIR
  python -m resnet.tools.prepare --from=idx --source=FOLDER --out=DIR

imagenet: the folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
folder: PATH/train/CLASS/FILE and PATH/val/CLASS/FILE, JPEG or PNG. tfds: a set
that is prepared already. idx: the files of MNIST and its kin.

Writes ArrayRecord in TFDS's layout to DIR/NAME/1.0.0, which training finds with
--config.data.name=NAME --config.data.data_dir=DIR. Every image is decoded,
every shard read back. After a stop or a kill the same command goes on; on a
finished set it compares the files with the manifest. TensorFlow is not needed.
"""

import argparse
import contextlib
import hashlib
import os
import re
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from resnet.data.host.decode import decode_record
from resnet.data.prepare import encoding, writing
from resnet.data.prepare import job as job_lib
from resnet.data.prepare.shards import disk
from resnet.data.sources import idx, imagenet
from resnet.data.sources.base import Source
from resnet.data.sources.registry import open_source
from resnet.errors import InputError, RunError
from resnet.files import Lock
from resnet.tools import command

Splits = dict[str, Source]


def main(args: argparse.Namespace) -> None:
  folder = os.path.join(args.out, _name(args), writing.VERSION)
  if os.path.isdir(folder):
    return _verify(args, folder)
  job = make_job(args)
  num_bytes = job_lib.estimate_bytes(job)
  job_lib.check_disk(job, num_bytes)
  parent = os.path.dirname(folder)
  with disk(parent):
    os.makedirs(parent, exist_ok=True)
  with contextlib.closing(Lock(parent, 'or give another --out or --name')):
    if os.path.isdir(folder):  # Another command has just finished it.
      return _verify(args, folder)
    with _bar(sum(map(len, job.splits.values())), 'prepared') as bar:
      manifest = writing.write(
        job,
        job.plan(num_bytes),
        num_threads=args.threads,
        advance=bar.update,
      )
  _check_by_tfds(args, folder, manifest)
  _say(folder, manifest)
  print(
    f'Train on it with: --config.data.name={job.name}'
    f' --config.data.data_dir={args.out}'
  )


def make_job(args: argparse.Namespace) -> job_lib.Job:
  """Returns what the command line asks for; reads the sources' names.

  Raises:
    InputError: an argument or a source is wrong.
  """
  if args.threads < 1:
    raise InputError(f'--threads={args.threads} is too small: at least 1.')
  name = _name(args)
  splits = _open(args, name)
  job_lib.check_class_names(next(iter(splits.values())).class_names or ())
  return job_lib.Job(
    name=name,
    folder=os.path.join(args.out, name, writing.VERSION),
    splits=splits,
    encoding=encoding.Encoding(
      channels=next(iter(splits.values())).channels,
      resize=args.resize,
      quality=args.quality,
      raw=args.raw,
    ),
    origin=_origin(args, splits),
    skip_bad=args.skip_bad,
  )


def _name(args: argparse.Namespace) -> str:
  name = args.name
  if name is None and args.kind == 'imagenet':
    name = imagenet.NAME
  if name is None:
    path = os.path.normpath(args.source)
    if args.kind == 'tfds' and re.fullmatch(
      r'\d+\.\d+\.\d+', os.path.basename(path)
    ):
      path = os.path.dirname(path)
    name = re.sub('[^a-z0-9]+', '_', os.path.basename(path).lower()).strip('_')
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise InputError(
      f'{name!r} is no name of a set: small letters, digits, underscores, a'
      ' letter first: --name=NAME'
    )
  return name


def _open(args: argparse.Namespace, name: str) -> Splits:
  if not os.path.isdir(args.source):
    raise InputError(
      f'--source={args.source} is no folder. See --help for what each --from'
      ' expects.'
    )
  if args.kind == 'idx':
    return idx.open_idx(args.source, name)
  if args.kind == 'folder':
    return {
      split: open_source('folder', folder, data_dir=args.source)
      for split, folder in (('train', 'train'), ('validation', 'val'))
    }
  if args.kind == 'imagenet':
    return {
      split: Source(
        name=name,
        split=split,
        num_classes=imagenet.NUM_CLASSES,
        channels=3,
        records=imagenet.open_tar(args.source, split),
        class_names=imagenet.class_names(),
      )
      for split in imagenet.SPLITS
    }
  return _open_tfds(args.source)


def _open_tfds(folder: str) -> Splits:
  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # Whatever a damaged folder makes TFDS raise.
    raise InputError(
      f'{folder} is no prepared TFDS set ({str(error).splitlines()[0]}): name'
      ' the folder of a version, DIR/NAME/VERSION, with dataset_info.json.'
    ) from None
  parent = os.path.dirname(os.path.dirname(os.path.normpath(folder)))
  return {
    split: open_source(
      f'{builder.info.name}:{builder.info.version}', split, data_dir=parent
    )
    for split in builder.info.splits
  }


def _origin(args: argparse.Namespace, splits: Splits) -> dict[str, Any]:
  """Returns what changes when the source does."""
  origin: dict[str, Any] = {
    'from': args.kind,
    'source': os.path.abspath(args.source),
  }
  for split, source in splits.items():
    records: Any = source.records
    if args.kind != 'tfds':
      origin[f'{split}_bytes'] = records.num_bytes()
    if args.kind == 'folder':
      digest = hashlib.sha256()
      for names in records.names:
        digest.update(names + b'\0')
      origin[f'{split}_names'] = digest.hexdigest()
  return origin


def _verify(args: argparse.Namespace, folder: str) -> None:
  with _bar(None, 'compared') as bar:
    manifest = writing.verify(folder, bar.update)
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
    source = open_source(manifest['name'], split, data_dir=args.out)
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
    f' {len(manifest["shards"])} files, {writing.MANIFEST}'
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
    choices=('imagenet', 'folder', 'tfds', 'idx'),
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
