"""One file of a prepared set: written, read back, compared, renamed."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import threading
from typing import Any

from array_record.python import array_record_module  # pyright: ignore

from resnet.data.prepare.encoding import Encoding
from resnet.data.sources.base import Record, Source
from resnet.errors import InputError, RunError

# Of the notes, one a finished shard.
NOTES = 'shards'
# JPEG and PNG do not become smaller, and reading is faster.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


@dataclasses.dataclass(frozen=True)
class Shard:
  """Every `count`-th record of a split, from number `number` on, in one file.

  Attributes:
    folder: that is being filled.
    name: of the set.
    split: of the set.
    number: of this shard.
    count: of shards.
    source: of all the split's records.
    encoding: how images are stored.
    features: of the set, as TFDS has them.
    skip_bad: leave broken images out instead of stopping.
    advance: is told of a number of records that are done.
  """

  folder: str
  name: str
  split: str
  number: int
  count: int
  source: Source
  encoding: Encoding
  features: Any
  skip_bad: bool
  advance: Callable[[int], Any]

  @property
  def file_name(self) -> str:
    place = f'{self.number:05}-of-{self.count:05}'
    return f'{self.name}-{self.split}.array_record-{place}'

  @property
  def path(self) -> str:
    return os.path.join(self.folder, self.file_name)

  @property
  def indices(self) -> range:
    return range(self.number, len(self.source), self.count)

  def make(self, stop: threading.Event) -> dict[str, Any]:
    """Writes the shard, if that was not done before, and returns its note."""
    note_path = os.path.join(self.folder, NOTES, f'{self.file_name}.json')
    if os.path.exists(note_path) and os.path.exists(self.path):
      with open(note_path) as file:
        note = json.load(file)
      if os.path.getsize(self.path) == note['bytes']:
        self.advance(len(self.indices))
        return note
    with disk(self.folder):
      temporary = f'{self.path}.tmp'
      digest, count, left_out = self._write(temporary, stop)
      _check(temporary, digest, count)
      os.replace(temporary, self.path)
      note = {
        'file': self.file_name,
        'split': self.split,
        'examples': count,
        'bytes': os.path.getsize(self.path),
        'sha256': sha256(self.path),
        'left_out': left_out,
      }
      write_json(note_path, note)
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
          if not self.skip_bad:
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
    (record,) = self.source.read([index])
    label = int(record['label'])
    if not 0 <= label < self.source.num_classes:
      raise InputError(
        f'The label of {self.source.key(index, record)} is {label}; expected 0'
        f' to {self.source.num_classes - 1}.'
      )
    name = record.get('file_name', record.get('id', str(index)))
    # The bytes of a file name, which need not be UTF-8.
    name = os.fsencode(name)
    return self.features.serialize_example(
      {'image': self._image(index, record), 'label': label, 'file_name': name}
    )

  def _image(self, index: int, record: Record) -> Any:
    try:
      image = self.encoding.encode(record['image'])
    except ValueError as error:
      raise InputError(
        f'The image of {self.source.key(index, record)} cannot be decoded:'
        f' {error}.'
      ) from None
    if isinstance(image, bytes):
      return io.BytesIO(image)
    shape = self.features['image'].shape
    if image.shape != shape:
      raise InputError(
        f'The image of {self.source.key(index, record)} is {image.shape},'
        f' others are {shape}: --raw needs one size: add --resize=SHORT_SIDE.'
      )
    return image


def _check(path: str, digest: str, count: int) -> None:
  """Reads a shard back from its file.

  Raises:
    RunError: it is not what was written.
  """
  found, num_records = hashlib.sha256(), 0
  with contextlib.suppress(RuntimeError):  # Told below.
    reader = array_record_module.ArrayRecordReader(path)
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


def sha256(path: str) -> str:
  """Returns the checksum of a file, once that is on the disk."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path: str, content: Any) -> None:
  """Writes a file at once: it is there whole, or not at all."""
  temporary = f'{path}.tmp'
  with open(temporary, 'w') as file:
    json.dump(content, file, indent=2)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


@contextlib.contextmanager
def disk(folder: str) -> Iterator[None]:
  """Says of the disk's errors what they mean."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # The second is ArrayRecord's.
    reason = getattr(error, 'strerror', None) or str(error).partition('\n')[0]
    raise RunError(
      f'{folder} cannot be written: {reason}. What is done'
      ' stays; the same command goes on.'
    ) from None
