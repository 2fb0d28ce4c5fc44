"""Writes prepared sets: ArrayRecord in the layout of TFDS, shard by shard.

A set grows in a folder NAME/VERSION.incomplete and is renamed when it is whole.
Each shard is written beside its name, read back and compared, and renamed; then
a note says that it is done. So a kill at any moment costs the shards that were
in work, and the same command goes on.
"""

from collections.abc import Callable, Iterable, Mapping
import concurrent.futures
import contextlib
import dataclasses
import glob
import hashlib
import io
import json
import os
import shutil
import threading
from typing import Any

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds

from resnet.data.datasets import Source
from resnet.data.encoding import Encoding
from resnet.errors import InputError, RunError

VERSION = '1.0.0'
MANIFEST = 'manifest.json'
_PLAN, _NOTES = 'plan.json', 'shards'
_SHARD_BYTES = 2**27
# JPEG and PNG do not become smaller, and reading is twice as fast.
_WRITER_OPTIONS = 'group_size:1,uncompressed'
# Share of the estimate that must be free besides.
_SPARE = 0.05
_NUM_SAMPLES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A set to be written.

  Attributes:
    name: of the set, as TFDS has it.
    folder: NAME/VERSION, where it will be.
    splits: what to write, by name.
    encoding: how.
    origin: what the images come from, in words and numbers; it must be equal
      for a job to go on.
    skip_bad: leave broken images out instead of stopping.
  """

  name: str
  folder: str
  splits: Mapping[str, Source]
  encoding: Encoding
  origin: Mapping[str, Any]
  skip_bad: bool = False

  @property
  def unfinished(self) -> str:
    return f'{self.folder}.incomplete'

  def plan(self, num_bytes: float) -> dict[str, Any]:
    """Returns what decides the bytes; `num_bytes` is the estimate of all."""
    total = sum(map(len, self.splits.values()))
    shards = {
      name: min(
        len(source),
        max(1, -(-int(num_bytes * len(source) / total) // _SHARD_BYTES), 8),
      )
      for name, source in self.splits.items()
    }
    names = next(iter(self.splits.values())).class_names
    return {
      'origin': dict(self.origin),
      'encoding': dataclasses.asdict(self.encoding),
      'examples': {name: len(source) for name, source in self.splits.items()},
      'shards': shards,
      'class_names': names and list(names),
      'skip_bad': self.skip_bad,
    }


def estimate_bytes(job: Job) -> int:
  """Returns about how much disk the set will take, from a few images.

  Raises:
    InputError: pixels shall be stored, and images differ in size.
  """
  total = 0.0
  for source in job.splits.values():
    indices = np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int).tolist()
    indices = sorted(set(indices))
    sizes = []
    for index, record in zip(indices, source.read(indices), strict=True):
      with contextlib.suppress(ValueError):  # It is named when it is written.
        sizes.append(len(_payload(job.encoding.encode(record['image']))) + 200)
    total += len(source) * float(np.mean(sizes or [0]))
  return int(total)


def check_disk(job: Job, num_bytes: int) -> None:
  """Checks, before anything is written, that the set will fit.

  Raises:
    InputError: it will not, or the folder cannot be written.
  """
  folder = os.path.abspath(job.folder)
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
    raise InputError(f'{job.folder} cannot be written: see {folder}.')
  needed = int(num_bytes * (1 + _SPARE)) - _size(job.unfinished)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise InputError(
      f'{job.folder} needs about {needed / 1e9:,.1f} GB and'
      f' {free / 1e9:,.1f} GB are free: name another --out, or store less'
      ' (--resize=256).'
    )


def _size(folder: str) -> int:
  paths = glob.glob(os.path.join(folder, '*.array_record-*'))
  return sum(map(os.path.getsize, paths))


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
    _Shard(job, split, number, count, features, advance)
    for split, count in plan['shards'].items()
    for number in range(count)
  ]
  stop = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    futures = [pool.submit(shard.make, stop) for shard in shards]
    try:
      notes = [future.result() for future in futures]
    except BaseException:
      stop.set()
      for future in futures:
        future.cancel()
      raise
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
  with _disk(job.unfinished):
    os.makedirs(os.path.join(job.unfinished, _NOTES), exist_ok=True)
    _write_json(path, plan)


def _features(job: Job) -> Any:
  source = next(iter(job.splits.values()))
  names = source.class_names
  encoding = job.encoding
  if encoding.raw:
    (record,) = source.read([0])
    shape = np.shape(encoding.encode(record['image']))
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


def _payload(image: bytes | np.ndarray) -> bytes:
  return image if isinstance(image, bytes) else image.tobytes()


@dataclasses.dataclass(frozen=True)
class _Shard:
  """Every so manieth record of a split, in one file."""

  job: Job
  split: str
  number: int
  count: int
  features: Any
  advance: Callable[[int], Any]

  @property
  def file_name(self) -> str:
    place = f'{self.number:05}-of-{self.count:05}'
    return f'{self.job.name}-{self.split}.array_record-{place}'

  @property
  def path(self) -> str:
    return os.path.join(self.job.unfinished, self.file_name)

  @property
  def indices(self) -> range:
    return range(self.number, len(self.job.splits[self.split]), self.count)

  def make(self, stop: threading.Event) -> dict[str, Any]:
    """Writes the shard, if that was not done before, and returns its note."""
    note_path = os.path.join(
      self.job.unfinished, _NOTES, f'{self.file_name}.json'
    )
    if os.path.exists(note_path) and os.path.exists(self.path):
      with open(note_path) as file:
        note = json.load(file)
      if os.path.getsize(self.path) == note['bytes']:
        self.advance(len(self.indices))
        return note
    with _disk(self.job.unfinished):
      temporary = f'{self.path}.tmp'
      digest, count, left_out = self._write(temporary, stop)
      _check(temporary, digest, count)
      os.replace(temporary, self.path)
      note = {
        'file': self.file_name,
        'split': self.split,
        'examples': count,
        'bytes': os.path.getsize(self.path),
        'sha256': _sha256(self.path),
        'left_out': left_out,
      }
      _write_json(note_path, note)
    return note

  def _write(
    self, path: str, stop: threading.Event
  ) -> tuple[str, int, list[str]]:
    writer = array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS)
    digest, count, left_out = hashlib.sha256(), 0, []
    try:
      for index in self.indices:
        if stop.is_set():
          raise RunError('Stopped.')
        try:
          data = self._serialize(index)
        except InputError as error:
          if not self.job.skip_bad:
            raise InputError(
              f'{error} Mend or remove it, or leave such out: --skip-bad'
            ) from None
          left_out.append(str(error))
        else:
          writer.write(data)
          digest.update(data)
          count += 1
        self.advance(1)
    finally:
      writer.close()
    return digest.hexdigest(), count, left_out

  def _serialize(self, index: int) -> bytes:
    source = self.job.splits[self.split]
    (record,) = source.read([index])
    try:
      image = self.job.encoding.encode(record['image'])
    except ValueError as error:
      raise InputError(
        f'The image of {source.key(index, record)} cannot be decoded: {error}.'
      ) from None
    shape = self.features['image'].shape
    if isinstance(image, bytes):
      image = io.BytesIO(image)
    elif image.shape != shape:
      raise InputError(
        f'The image of {source.key(index, record)} is {image.shape}, others are'
        f' {shape}: --raw needs one size, so add --resize=SHORT_SIDE.'
      )
    label = int(record['label'])
    if not 0 <= label < source.num_classes:
      raise InputError(
        f'The label of {source.key(index, record)} is {label}; expected 0 to'
        f' {source.num_classes - 1}.'
      )
    name = record.get('file_name', record.get('id', str(index)))
    return self.features.serialize_example(
      {'image': image, 'label': label, 'file_name': name}
    )


def _check(path: str, digest: str, count: int) -> None:
  """Reads a shard back from its file.

  Raises:
    RunError: it is not what was written.
  """
  found, reader = hashlib.sha256(), array_record_module.ArrayRecordReader(path)
  try:
    num_records = reader.num_records()
    for start in range(0, num_records, 64):
      end = min(start + 64, num_records)
      for data in reader.read(list(range(start, end))):
        found.update(data)
  finally:
    reader.close()
  if (found.hexdigest(), num_records) != (digest, count):
    raise RunError(
      f'{path} does not hold what was written ({num_records} of {count}'
      ' records): the disk is failing. Use another one.'
    )


def _sha256(path: str) -> str:
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
    return hashlib.file_digest(file, 'sha256').hexdigest()


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
  with _disk(job.unfinished):
    tfds.folder_dataset.write_metadata(
      data_dir=job.unfinished,
      features=features,
      split_infos=splits,
      version=VERSION,
      filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      check_data=False,
      description=f'{job.name}, by resnet.tools.prepare.',
    )
    _write_json(os.path.join(job.unfinished, MANIFEST), manifest)
    shutil.rmtree(os.path.join(job.unfinished, _NOTES))
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
      is_whole = _sha256(path) == shard['sha256']
    except OSError:
      is_whole = False
    if not is_whole:
      raise InputError(
        f'{path} is missing or not what its manifest says: delete {folder} and'
        ' prepare the set again.'
      )
    advance(shard['examples'])
  return manifest


def _write_json(path: str, content: Any) -> None:
  temporary = f'{path}.tmp'
  with open(temporary, 'w') as file:
    json.dump(content, file, indent=2)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


@contextlib.contextmanager
def _disk(folder: str) -> Any:
  """Says of the disk's errors what they mean."""
  try:
    yield
  except OSError as error:
    raise RunError(
      f'{folder} cannot be written: {error.strerror or error}. What is done'
      ' stays; the same command goes on.'
    ) from None
