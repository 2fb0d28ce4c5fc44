"""Writes prepared sets: ArrayRecord in the layout of TFDS, shard by shard.

A set grows in a folder NAME/VERSION.incomplete, which is renamed when it is
complete. Each shard is written under another name, read back, compared and
renamed; then a note records that it is done. So a kill at any moment loses only
the shards in progress, and the same command continues.
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
from typing import Any

from array_record.python import array_record_module  # pyright: ignore
import tensorflow_datasets as tfds

from resnet.data.prepare.job import Job
from resnet.errors import InputError, RunError
from resnet.files import replacing, write_atomically

VERSION = '1.0.0'
MANIFEST = 'manifest.json'
# In the folder of an unfinished set: what is to be written, and the folder of
# notes, one per finished shard.
_PLAN, _NOTES = 'plan.json', 'shards'
# JPEG and PNG do not become smaller, and reading is faster.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
# Bytes of a shard, and the least number of shards: a small set has several,
# so that it is written in parallel.
_SHARD_BYTES, _MIN_SHARDS = 2**27, 8

Advance = Callable[[int], Any]  # Called with a number of records that are done.


def write(job: Job, *, num_threads: int, advance: Advance) -> dict[str, Any]:
  """Writes what is missing, and returns the manifest.

  Each thread writes a shard: decoding and encoding release Python's lock.
  """
  try:
    plan = _begin(job)
    places = [
      (split, number, count)
      for split, count in plan['shards'].items()
      for number in range(count)
    ]
    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    try:
      shards = [pool.submit(_make_shard, job, advance, *x) for x in places]
      for shard in concurrent.futures.as_completed(shards):
        shard.result()
    finally:  # After an error no other shard is begun.
      pool.shutdown(cancel_futures=True)
    return _finish(job, plan, [shard.result() for shard in shards])
  except (OSError, RuntimeError) as error:  # The second is ArrayRecord's.
    reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
    raise RunError(
      f'{job.unfinished} cannot be written: {reason}. Finished shards stay; the'
      ' same command continues.'
    ) from None


def _begin(job: Job) -> dict[str, Any]:
  """Returns what decides the bytes of the files; it becomes the manifest."""
  names, path = job.first.class_names, job.unfinished / _PLAN
  examples = {split: len(source) for split, source in job.splits.items()}
  record_bytes = job.num_bytes / sum(examples.values())
  plan = {
    'name': job.name,
    'version': VERSION,
    'origin': dict(job.origin),
    'encoding': dataclasses.asdict(job.encoding),
    'skip_bad': job.skip_bad,
    'class_names': names and list(names),
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
        f'{job.unfinished} is half-written by another command: it differs in'
        f' {", ".join(keys)}. Give that command again, or delete the folder.'
      )
  (job.unfinished / _NOTES).mkdir(parents=True, exist_ok=True)
  # Shards that were in progress when a command was killed.
  for left_over in job.unfinished.rglob('.*.array_record-*'):
    left_over.unlink()
  write_atomically(str(path), json.dumps(plan, indent=2))
  return plan


def _make_shard(
  job: Job, advance: Advance, split: str, number: int, count: int
) -> dict[str, Any]:
  """Writes every `count`-th record from `number` on, unless that is done.

  Returns:
    The shard's note.
  """
  indices = range(number, len(job.splits[split]), count)
  name = f'{job.name}-{split}.array_record-{number:05}-of-{count:05}'
  path = job.unfinished / name
  note_path = job.unfinished / _NOTES / f'{name}.json'
  if note_path.exists():
    advance(len(indices))
    return json.loads(note_path.read_text())
  digest, left_out = hashlib.sha256(), []
  with replacing(str(path)) as temporary:
    writer = array_record_module.ArrayRecordWriter(temporary, _WRITER_OPTIONS)
    with contextlib.closing(writer):
      for index in indices:
        try:
          data = _serialize(job, split, index)
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
  note = {
    'split': split,
    'left_out': left_out,
    'file': name,
    'examples': num_written,
    'bytes': path.stat().st_size,
    'sha256': _sha256(path),
  }
  write_atomically(str(note_path), json.dumps(note))
  return note


def _serialize(job: Job, split: str, index: int) -> bytes:
  source = job.splits[split]
  (record,) = source.read([index])
  key, label = source.key(index, record), int(record['label'])
  if not 0 <= label < source.num_classes:
    raise InputError(
      f'The label of {key} is {label}; expected 0 to {source.num_classes - 1}.'
    )
  try:
    image: Any = job.encoding.encode(record['image'])
  except ValueError as error:
    raise InputError(
      f'The image of {key} cannot be decoded: {error}.'
    ) from None
  if isinstance(image, bytes):
    image = io.BytesIO(image)
  elif image.shape != job.features['image'].shape:
    raise InputError(
      f'The image of {key} is {image.shape}, others are'
      f' {job.features["image"].shape}: --raw needs one size: add'
      ' --resize=SHORT_SIDE.'
    )
  # The bytes of a file name, which need not be UTF-8.
  name = os.fsencode(record.get('file_name', record.get('id', str(index))))
  return job.features.serialize_example(
    {'image': image, 'label': label, 'file_name': name}
  )


def _read_back(path: str, digest: str, count: int) -> None:
  """Compares the records of a file with what was written."""
  found, num_records = hashlib.sha256(), 0
  with contextlib.suppress(RuntimeError):  # Reported below.
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
  job: Job, plan: Mapping[str, Any], notes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Writes the metadata, renames the folder and returns the manifest."""
  splits = []
  for split in job.splits:
    own = [note for note in notes if note['split'] == split]
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[note['examples'] for note in own],
        num_bytes=sum(note['bytes'] for note in own),
      )
    )
    if not splits[-1].num_examples:
      raise InputError(f'No image of {split!r} can be decoded.')
  files = ('file', 'examples', 'bytes', 'sha256')
  manifest = {
    **plan,
    'examples': {split.name: split.num_examples for split in splits},
    'bytes': sum(split.num_bytes for split in splits),
    'left_out': [text for note in notes for text in note['left_out']],
    'shards': [{key: note[key] for key in files} for note in notes],
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
  path = str(job.unfinished / MANIFEST)
  write_atomically(path, json.dumps(manifest, indent=2))
  shutil.rmtree(job.unfinished / _NOTES)
  (job.unfinished / _PLAN).unlink()
  job.unfinished.rename(job.folder)
  return manifest


def verify(folder: str, advance: Advance) -> dict[str, Any]:
  """Compares a finished set with its manifest, and returns that."""
  path = pathlib.Path(folder, MANIFEST)
  if not path.exists():
    raise InputError(
      f'{folder} has no {MANIFEST}: another program has made it. Give another'
      ' --out or --name.'
    )
  manifest = json.loads(path.read_text())
  for shard in manifest['shards']:
    path = pathlib.Path(folder, shard['file'])
    if not path.exists() or _sha256(path) != shard['sha256']:
      raise InputError(
        f'{path} is missing or not what its manifest says: delete {folder} and'
        ' prepare the set again.'
      )
    advance(shard['examples'])
  return manifest
