"""One file of a prepared set: written, read back, compared, renamed."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import hashlib
import io
import json
import os
from typing import Any

from array_record.python import array_record_module  # pyright: ignore

from resnet.data.prepare.encoding import Encoding
from resnet.data.sources.base import Source
from resnet.errors import InputError, RunError
from resnet.files import replacing, write_atomically

# The folder of notes in that of an unfinished set, one per finished shard.
NOTES = 'shards'
# JPEG and PNG do not become smaller, and reading is faster.
_WRITER_OPTIONS = 'group_size:1,uncompressed'

Advance = Callable[[int], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A set to be written.

  Attributes:
    name: of the set, as TFDS has it.
    folder: NAME/VERSION, where it will be.
    splits: what to write, by name; all have the same classes.
    encoding: how images are stored.
    origin: what the images come from, in words and numbers; an unfinished set
      is continued only where it is the same.
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
    """The folder of the set until it is complete."""
    return f'{self.folder}.incomplete'

  @property
  def first(self) -> Source:
    """The first split, for what all splits have in common."""
    return next(iter(self.splits.values()))


def make_shard(
  job: Job,
  features: Any,
  split: str,
  number: int,
  count: int,
  advance: Advance,
) -> dict[str, Any]:
  """Writes a shard, unless that is done already, and returns its note.

  Args:
    job: the set.
    features: of the set, as TFDS has them.
    split: the split's name.
    number: of the shard, which holds every `count`-th record from this on.
    count: of shards.
    advance: called with a number of records that are done.
  """
  indices = range(number, len(job.splits[split]), count)
  name = f'{job.name}-{split}.array_record-{number:05}-of-{count:05}'
  path = os.path.join(job.unfinished, name)
  note_path = os.path.join(job.unfinished, NOTES, f'{name}.json')
  if os.path.exists(note_path):
    advance(len(indices))
    with open(note_path) as file:
      return json.load(file)
  digest, num_written, left_out = hashlib.sha256(), 0, []
  with replacing(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(temporary, _WRITER_OPTIONS)
    with contextlib.closing(writer):
      for index in indices:
        try:
          data = _serialize(job, features, split, index)
        except InputError as error:
          if not job.skip_bad:
            raise InputError(
              f'{error} Mend or remove it, or leave such out: --skip-bad'
            ) from None
          left_out.append(str(error))
        else:
          writer.write(data)
          digest.update(data)
          num_written += 1
        advance(1)
    _read_back(temporary, digest.hexdigest(), num_written)
  note = {
    'split': split,
    'left_out': left_out,
    'file': name,
    'examples': num_written,
    'bytes': os.path.getsize(path),
    'sha256': sha256(path),
  }
  write_atomically(note_path, json.dumps(note))
  return note


def _serialize(job: Job, features: Any, split: str, index: int) -> bytes:
  source = job.splits[split]
  (record,) = source.read([index])
  label = int(record['label'])
  if not 0 <= label < source.num_classes:
    raise InputError(
      f'The label of {source.key(index, record)} is {label}; expected 0'
      f' to {source.num_classes - 1}.'
    )
  try:
    image: Any = job.encoding.encode(record['image'])
  except ValueError as error:
    raise InputError(
      f'The image of {source.key(index, record)} cannot be decoded: {error}.'
    ) from None
  if isinstance(image, bytes):
    image = io.BytesIO(image)
  elif image.shape != features['image'].shape:
    raise InputError(
      f'The image of {source.key(index, record)} is {image.shape}, others are'
      f' {features["image"].shape}: --raw needs one size: add'
      ' --resize=SHORT_SIDE.'
    )
  name = record.get('file_name', record.get('id', str(index)))
  # The bytes of a file name, which need not be UTF-8.
  name = os.fsencode(name)
  return features.serialize_example(
    {'image': image, 'label': label, 'file_name': name}
  )


def _read_back(path: str, digest: str, count: int) -> None:
  """Compares the records of a file with what was written.

  Raises:
    RunError: they differ.
  """
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


def sha256(path: str) -> str:
  """Returns the checksum of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
