"""Writes prepared sets as ArrayRecord files in TFDS's layout, shard by shard.

A set is written to a folder NAME/VERSION.incomplete, which is renamed when it
is complete. Each shard is written to a temporary file, read back, compared and
renamed; then a JSON file records that it is finished. A kill loses only the
shards in progress, and the same command continues.
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

from array_record.python import array_record_module  # pyright: ignore
import tensorflow_datasets as tfds

from resnet.data.prepare.job import Job
from resnet.data.sources.base import Source
from resnet.errors import InputError, RunError, reason_of
from resnet.files import reading, replacing, write_atomically

VERSION = '1.0.0'
MANIFEST = 'manifest.json'
# In an unfinished set: the plan, and the folder with a JSON file for each
# finished shard.
_PLAN, _FINISHED = 'plan.json', 'shards'
# Compression does not shrink JPEG or PNG files, and it slows down reading.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
# Target size of a shard, and the minimum number of shards, so that a small
# set is also written in parallel.
_SHARD_BYTES, _MIN_SHARDS = 2**27, 8

Advance = Callable[[int], Any]  # Called with a number of finished records.


def write(job: Job, *, num_threads: int, advance: Advance) -> dict[str, Any]:
  """Writes the missing shards and returns the manifest.

  Each thread writes one shard at a time; decoding and encoding release the GIL.

  Raises:
    InputError: an image is broken, or a different command began the set.
    RunError: the disk is full or failing.
  """
  try:
    plan = _begin(job)
    splits = plan['shards'].items()
    shards = [
      (split, i, count) for split, count in splits for i in range(count)
    ]
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
      # After an error, `map` cancels the shards that have not started.
      make = functools.partial(_make_shard, job, advance)
      return _finish(job, plan, list(pool.map(make, shards)))
  except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError.
    raise RunError(
      f'{job.unfinished} cannot be written: {reason_of(error)}. Finished shards'
      ' are kept; the same command continues.'
    ) from None


def _begin(job: Job) -> dict[str, Any]:
  """Writes and returns the plan, which determines what the shards contain."""
  path = job.unfinished / _PLAN
  examples = {split: len(source) for split, source in job.splits.items()}
  record_bytes = job.num_bytes / sum(examples.values())
  plan = {
    'name': job.name,
    'version': VERSION,
    'origin': dict(job.origin),
    'encoding': dataclasses.asdict(job.encoding),
    'skip_bad': job.skip_bad,
    'class_names': job.class_names,
    'examples': examples,
    'shards': {
      split: min(
        count, max(_MIN_SHARDS, math.ceil(record_bytes * count / _SHARD_BYTES))
      )
      for split, count in examples.items()
    },
  }
  if path.exists():
    found = json.loads(path.read_text())
    if keys := [key for key in plan if found.get(key) != plan[key]]:
      raise InputError(
        f'{job.unfinished} was begun by another command, which differs in'
        f' {", ".join(keys)}. Repeat that command, or delete the folder.'
      )
  (job.unfinished / _FINISHED).mkdir(parents=True, exist_ok=True)
  # Remove shards that were in progress when a command was killed.
  for partial in job.unfinished.rglob('.*.array_record-*'):
    partial.unlink()
  write_atomically(str(path), json.dumps(plan, indent=2))
  return plan


def _make_shard(
  job: Job, advance: Advance, shard: tuple[str, int, int]
) -> dict[str, Any]:
  """Writes a shard, unless it is finished, and returns its description.

  `shard` is (split, number, count): it holds every `count`-th record of the
  split, starting at `number`.
  """
  split, number, count = shard
  indices = range(number, len(job.splits[split]), count)
  name = f'{job.name}-{split}.array_record-{number:05}-of-{count:05}'
  path = job.unfinished / name
  finished_path = job.unfinished / _FINISHED / f'{name}.json'
  if finished_path.exists():
    advance(len(indices))
    return json.loads(finished_path.read_text())
  digest, left_out = hashlib.sha256(), []
  with replacing(str(path)) as temporary:
    writer = array_record_module.ArrayRecordWriter(temporary, _WRITER_OPTIONS)
    with contextlib.closing(writer):
      for index in indices:
        try:
          data = _serialize(job.splits[split], index, job)
        except InputError as error:
          if not job.skip_bad:
            raise InputError(
              f'{error} Repair or remove it, or leave such images out:'
              ' --skip-bad'
            ) from None
          left_out.append(str(error))
        else:
          writer.write(data)
          digest.update(data)
        advance(1)
    num_written = len(indices) - len(left_out)
    _read_back(temporary, digest.hexdigest(), num_written)
  finished = {
    'split': split,
    'left_out': left_out,
    'file': name,
    'examples': num_written,
    'bytes': path.stat().st_size,
    'sha256': _sha256(path),
  }
  write_atomically(str(finished_path), json.dumps(finished))
  return finished


def _serialize(source: Source, index: int, job: Job) -> bytes:
  """Encodes a record of a split of `job` as TFDS does."""
  record = source.records[index]
  key, label = source.key(index, record), source.label(index, record)
  with reading(f'The image of {key} cannot be decoded'):
    image: Any = job.encoding.encode(record['image'])
  shape = job.features['image'].shape
  if job.encoding.raw and image.shape != shape:
    raise InputError(
      f'The image of {key} has shape {image.shape}, not {shape}, but --raw'
      ' needs one size: add --resize=SHORT_SIDE.'
    )
  # File names are bytes that need not be valid UTF-8.
  name = os.fsencode(record.get('file_name', record.get('id', str(index))))
  return job.features.serialize_example(
    {'image': image, 'label': label, 'file_name': name}
  )


def _read_back(path: str, digest: str, count: int) -> None:
  """Raises a RunError if a shard does not hold the records written to it."""
  found, num_records = hashlib.sha256(), 0
  with contextlib.suppress(RuntimeError):  # The comparison below fails then.
    reader = array_record_module.ArrayRecordReader(path)
    num_records = reader.num_records()
    for start in range(0, num_records, 64):
      for data in reader.read(start, min(start + 64, num_records)):
        found.update(data)
  if (found.hexdigest(), num_records) != (digest, count):
    raise RunError(
      f'{path} does not hold what was written ({num_records} of {count}'
      ' records): the disk is failing. Use another one.'
    )


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _finish(
  job: Job, plan: Mapping[str, Any], shards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Writes the metadata, renames the folder and returns the manifest."""
  splits = []
  for split in job.splits:
    own = [shard for shard in shards if shard['split'] == split]
    lengths = [shard['examples'] for shard in own]
    if not sum(lengths):
      raise InputError(f'No image of {split!r} can be decoded.')
    num_bytes = sum(shard['bytes'] for shard in own)
    splits.append(
      tfds.core.SplitInfo(
        name=split, shard_lengths=lengths, num_bytes=num_bytes
      )
    )
  fields = ('file', 'examples', 'bytes', 'sha256')
  manifest = {
    **plan,
    'examples': {split.name: split.num_examples for split in splits},
    'bytes': sum(split.num_bytes for split in splits),
    'left_out': [text for shard in shards for text in shard['left_out']],
    'shards': [{key: shard[key] for key in fields} for shard in shards],
  }
  tfds.folder_dataset.write_metadata(
    data_dir=str(job.unfinished),
    features=job.features,
    split_infos=splits,
    version=VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=f'{job.name}, by resnet.tools.prepare.',
  )
  write_atomically(
    str(job.unfinished / MANIFEST), json.dumps(manifest, indent=2)
  )
  shutil.rmtree(job.unfinished / _FINISHED)
  (job.unfinished / _PLAN).unlink()
  job.unfinished.rename(job.folder)
  return manifest


def verify(folder: str, advance: Advance) -> dict[str, Any]:
  """Compares a finished set with its manifest, and returns the manifest."""
  path = pathlib.Path(folder, MANIFEST)
  if not path.exists():
    raise InputError(
      f'{folder} has no {MANIFEST}, so another program wrote it: choose another'
      ' --out or --name.'
    )
  manifest = json.loads(path.read_text())
  for shard in manifest['shards']:
    path = pathlib.Path(folder, shard['file'])
    if not path.exists() or _sha256(path) != shard['sha256']:
      raise InputError(
        f'{path} is missing or differs from its manifest: delete {folder} and'
        ' prepare the set again.'
      )
    advance(shard['examples'])
  return manifest
