"""Writes prepared sets: ArrayRecord in the layout of TFDS, shard by shard.

A set grows in a folder NAME/VERSION.incomplete and is renamed when it is whole.
Each shard is written, read back and compared under another name, and renamed;
then a note says that it is done. So a kill at any moment costs the shards that
were in work, and the same command goes on.
"""

from collections.abc import Callable, Iterable, Mapping
import concurrent.futures
import contextlib
import json
import os
import shutil
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet.data.prepare import shards as shards_lib
from resnet.data.prepare.job import Job
from resnet.errors import InputError

VERSION = '1.0.0'
MANIFEST = 'manifest.json'
_PLAN = 'plan.json'


def write(
  job: Job,
  plan: Mapping[str, Any],
  *,
  num_threads: int,
  advance: Callable[[int], Any],
) -> dict[str, Any]:
  """Writes what is missing, and returns the manifest.

  Args:
    job: the set.
    plan: of the job.
    num_threads: shards in work at a time; what takes the time, decoding and
      encoding, leaves Python's lock alone.
    advance: is told of a number of records that are done.

  Raises:
    InputError: an image cannot be decoded, or the folder holds another job.
    RunError: the disk failed, or did not give back what was written.
  """
  _begin(job, plan)
  features = _features(job)
  shards = [
    shards_lib.Shard(
      folder=job.unfinished,
      name=job.name,
      split=split,
      number=number,
      count=count,
      source=job.splits[split],
      encoding=job.encoding,
      features=features,
      skip_bad=job.skip_bad,
      advance=advance,
    )
    for split, count in plan['shards'].items()
    for number in range(count)
  ]
  stop = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    futures = [pool.submit(shard.make, stop) for shard in shards]
    try:
      for future in concurrent.futures.as_completed(futures):
        future.result()  # The first error ends it.
    except BaseException:
      stop.set()
      pool.shutdown(cancel_futures=True)
      raise
  notes = [future.result() for future in futures]
  manifest = _manifest(job, plan, notes)
  _finish(job, manifest, features)
  return manifest


def _begin(job: Job, plan: Mapping[str, Any]) -> None:
  path = os.path.join(job.unfinished, _PLAN)
  with contextlib.suppress(FileNotFoundError), open(path) as file:
    found = json.load(file)
    if found != json.loads(json.dumps(plan)):
      keys = [key for key in plan if found.get(key) != plan[key]]
      raise InputError(
        f'{job.unfinished} is half-written by another command: it differs in'
        f' {", ".join(keys)}. Give that command again, or delete the folder.'
      )
    return
  with shards_lib.disk(job.unfinished):
    os.makedirs(os.path.join(job.unfinished, shards_lib.NOTES), exist_ok=True)
    shards_lib.write_json(path, plan)


def _features(job: Job) -> Any:
  source = next(iter(job.splits.values()))
  names = source.class_names
  encoding = job.encoding
  if encoding.raw:
    (record,) = source.read([0])
    image: Any = encoding.encode(record['image'])
    shape = image.shape
    image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding='bytes')
  else:
    image = tfds.features.Image(shape=(None, None, encoding.channels))
  label = (
    tfds.features.ClassLabel(names=list(names))
    if names
    else tfds.features.ClassLabel(num_classes=source.num_classes)
  )
  return tfds.features.FeaturesDict(
    {'image': image, 'label': label, 'file_name': tfds.features.Text()}
  )


def _manifest(
  job: Job, plan: Mapping[str, Any], notes: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
  notes = list(notes)
  left_out = [text for note in notes for text in note['left_out']]
  examples = {
    split: sum(n['examples'] for n in notes if n['split'] == split)
    for split in job.splits
  }
  for split, count in examples.items():
    if not count:
      raise InputError(f'No image of {split!r} can be decoded.')
  return {
    'name': job.name,
    'version': VERSION,
    'origin': plan['origin'],
    'encoding': plan['encoding'],
    'examples': examples,
    'bytes': sum(note['bytes'] for note in notes),
    'class_names': plan['class_names'],
    'left_out': left_out,
    'shards': [
      {key: note[key] for key in ('file', 'examples', 'bytes', 'sha256')}
      for note in notes
    ],
  }


def _finish(job: Job, manifest: Mapping[str, Any], features: Any) -> None:
  shards = manifest['shards']
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[s['examples'] for s in shards if _is_of(s, job, split)],
      num_bytes=sum(s['bytes'] for s in shards if _is_of(s, job, split)),
    )
    for split in job.splits
  ]
  with shards_lib.disk(job.unfinished):
    tfds.folder_dataset.write_metadata(
      data_dir=job.unfinished,
      features=features,
      split_infos=splits,
      version=VERSION,
      filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      check_data=False,
      description=f'{job.name}, by resnet.tools.prepare.',
    )
    shards_lib.write_json(os.path.join(job.unfinished, MANIFEST), manifest)
    shutil.rmtree(os.path.join(job.unfinished, shards_lib.NOTES))
    os.remove(os.path.join(job.unfinished, _PLAN))
    os.replace(job.unfinished, job.folder)


def _is_of(shard: Mapping[str, Any], job: Job, split: str) -> bool:
  return shard['file'].startswith(f'{job.name}-{split}.')


def verify(folder: str, advance: Callable[[int], Any]) -> dict[str, Any]:
  """Compares a finished set with its manifest, and returns that.

  Raises:
    InputError: a file is missing or changed, or there is no manifest.
  """
  try:
    with open(os.path.join(folder, MANIFEST)) as file:
      manifest = json.load(file)
  except FileNotFoundError:
    raise InputError(
      f'{folder} is there and has no {MANIFEST}: another program has made it.'
      ' Give another --out or --name.'
    ) from None
  for shard in manifest['shards']:
    path = os.path.join(folder, shard['file'])
    try:
      is_whole = shards_lib.sha256(path) == shard['sha256']
    except OSError:
      is_whole = False
    if not is_whole:
      raise InputError(
        f'{path} is missing or not what its manifest says: delete {folder} and'
        ' prepare the set again.'
      )
    advance(shard['examples'])
  return manifest
