"""Writes prepared sets: ArrayRecord in the layout of TFDS, shard by shard.

A set grows in a folder NAME/VERSION.incomplete, which is renamed when it is
complete. Each shard is written under another name, read back, compared and
renamed; then a note records that it is done. So a kill at any moment loses only
the shards in progress, and the same command continues.
"""

from collections.abc import Iterator, Mapping, Sequence
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import threading
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from resnet.data.prepare import shards
from resnet.errors import InputError, RunError
from resnet.files import write_atomically

VERSION = '1.0.0'
MANIFEST = 'manifest.json'
# In the folder of an unfinished set: what is to be written.
_PLAN = 'plan.json'
_SHARD_BYTES = 2**27
# So that a small set is written in parallel, too.
_MIN_SHARDS = 8
# Of a record besides the image.
_RECORD_BYTES = 200
# Share of the estimate that must be free besides.
_SPARE = 0.05
_NUM_SAMPLES = 32


@contextlib.contextmanager
def disk(folder: str) -> Iterator[None]:
  """Turns errors of the disk into a RunError that says what to do."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # The second is ArrayRecord's.
    reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
    raise RunError(
      f'{folder} cannot be written: {reason}. What is done'
      ' stays; the same command goes on.'
    ) from None


def check_class_names(names: Sequence[str]) -> None:
  """Checks that TFDS can read the names back from a file of one name a line.

  Raises:
    InputError: a name is empty, has a line break or blanks around it, or is
      not UTF-8.
  """
  for name in names:
    if name.encode(errors='ignore').decode().strip().splitlines() != [name]:
      raise InputError(
        f'The class name {name!r} is not one line of UTF-8 without blanks'
        ' around it, and a prepared set cannot hold it: rename the class.'
      )


def estimate_bytes(job: shards.Job) -> int:
  """Returns about how much disk the set will take, from a few images.

  Raises:
    InputError: a record cannot be read.
  """
  total = 0.0
  for source in job.splits.values():
    indices = np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int).tolist()
    sizes = []
    for record in source.read(sorted(set(indices))):
      # A broken image is reported when it is written.
      with contextlib.suppress(ValueError):
        image = job.encoding.encode(record['image'])
        size = len(image) if isinstance(image, bytes) else image.nbytes
        sizes.append(size + _RECORD_BYTES)
    total += len(source) * float(np.mean(sizes or [0]))
  return int(total)


def check_disk(job: shards.Job, num_bytes: int) -> None:
  """Checks, before anything is written, that the set will fit.

  Raises:
    InputError: it will not, or the folder cannot be written.
  """
  folder = os.path.abspath(job.folder)
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
    raise InputError(f'{job.folder} cannot be written: see {folder}.')
  written = pathlib.Path(job.unfinished).glob('*.array_record-*')
  needed = int(num_bytes * (1 + _SPARE))
  needed -= sum(path.stat().st_size for path in written)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise InputError(
      f'{job.folder} needs about {needed / 1e9:,.1f} GB and'
      f' {free / 1e9:,.1f} GB are free: name another --out, or store less'
      ' (--resize=256).'
    )


def write(
  job: shards.Job, num_bytes: int, *, num_threads: int, advance: shards.Advance
) -> dict[str, Any]:
  """Writes what is missing, and returns the manifest.

  Args:
    job: the set.
    num_bytes: estimate of its size, which decides the number of shards.
    num_threads: shards written at the same time; decoding and encoding, which
      take most of the time, release Python's lock.
    advance: called with a number of records that are done.

  Raises:
    InputError: an image cannot be decoded, or the folder holds another job.
    RunError: the disk failed, or did not give back what was written.
  """
  plan = _plan(job, num_bytes)
  _begin(job, plan)
  features = _features(job)
  stop = threading.Event()

  def advance_or_stop(num_records: int) -> None:
    if stop.is_set():
      raise RunError('Stopped.')
    advance(num_records)

  def make(place: tuple[str, int, int]) -> dict[str, Any]:
    return shards.make_shard(job, features, *place, advance_or_stop)

  places = [
    (split, number, count)
    for split, count in plan['shards'].items()
    for number in range(count)
  ]
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    try:
      notes = list(pool.map(make, places))
    except BaseException:
      stop.set()
      raise
  return _finish(job, plan, features, notes)


def _plan(job: shards.Job, num_bytes: int) -> dict[str, Any]:
  """Returns what decides the bytes of the files; it becomes the manifest."""
  examples = {split: len(source) for split, source in job.splits.items()}
  num_shards = {}
  for split, count in examples.items():
    least = max(
      _MIN_SHARDS,
      math.ceil(num_bytes * count / sum(examples.values()) / _SHARD_BYTES),
    )
    num_shards[split] = min(count, least)
  names = job.first.class_names
  return {
    'name': job.name,
    'version': VERSION,
    'origin': dict(job.origin),
    'encoding': dataclasses.asdict(job.encoding),
    'skip_bad': job.skip_bad,
    'class_names': names and list(names),
    'examples': examples,
    'shards': num_shards,
  }


def _begin(job: shards.Job, plan: Mapping[str, Any]) -> None:
  path = os.path.join(job.unfinished, _PLAN)
  with contextlib.suppress(FileNotFoundError), open(path) as file:
    found = json.load(file)
    if found != json.loads(json.dumps(plan)):
      keys = [key for key in plan if found.get(key) != plan[key]]
      raise InputError(
        f'{job.unfinished} is half-written by another command: it differs in'
        f' {", ".join(keys)}. Give that command again, or delete the folder.'
      )
  # Shards that were in progress when a command was killed.
  for left_over in pathlib.Path(job.unfinished).rglob('.*.array_record-*'):
    left_over.unlink()
  os.makedirs(os.path.join(job.unfinished, shards.NOTES), exist_ok=True)
  write_atomically(path, json.dumps(plan, indent=2))


def _features(job: shards.Job) -> Any:
  names, encoding = job.first.class_names, job.encoding
  if encoding.raw:
    (record,) = job.first.read([0])
    pixels: Any = encoding.encode(record['image'])
    image = tfds.features.Tensor(
      shape=pixels.shape, dtype=np.uint8, encoding='bytes'
    )
  else:
    image = tfds.features.Image(shape=(None, None, encoding.channels))
  label = (
    tfds.features.ClassLabel(names=list(names))
    if names
    else tfds.features.ClassLabel(num_classes=job.first.num_classes)
  )
  return tfds.features.FeaturesDict(
    {'image': image, 'label': label, 'file_name': tfds.features.Text()}
  )


def _finish(
  job: shards.Job,
  plan: Mapping[str, Any],
  features: Any,
  notes: Sequence[dict[str, Any]],
) -> dict[str, Any]:
  """Writes the metadata, renames the folder and returns the manifest."""
  left_out = [text for note in notes for text in note.pop('left_out')]
  by_split = {split: [] for split in job.splits}
  for note in notes:
    by_split[note.pop('split')].append(note)
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[note['examples'] for note in own],
      num_bytes=sum(note['bytes'] for note in own),
    )
    for split, own in by_split.items()
  ]
  for split in splits:
    if not split.num_examples:
      raise InputError(f'No image of {split.name!r} can be decoded.')
  manifest = {
    **plan,
    'examples': {split.name: split.num_examples for split in splits},
    'bytes': sum(split.num_bytes for split in splits),
    'left_out': left_out,
    'shards': list(notes),
  }
  tfds.folder_dataset.write_metadata(
    data_dir=job.unfinished,
    features=features,
    split_infos=splits,
    version=VERSION,
    filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
    check_data=False,
    description=f'{job.name}, by resnet.tools.prepare.',
  )
  path = os.path.join(job.unfinished, MANIFEST)
  write_atomically(path, json.dumps(manifest, indent=2))
  shutil.rmtree(os.path.join(job.unfinished, shards.NOTES))
  os.remove(os.path.join(job.unfinished, _PLAN))
  os.replace(job.unfinished, job.folder)
  return manifest


def verify(folder: str, advance: shards.Advance) -> dict[str, Any]:
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
    if not os.path.exists(path) or shards.sha256(path) != shard['sha256']:
      raise InputError(
        f'{path} is missing or not what its manifest says: delete {folder} and'
        ' prepare the set again.'
      )
    advance(shard['examples'])
  return manifest
