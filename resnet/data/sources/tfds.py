"""Records of a prepared TFDS set, read with little work in Python.

TFDS's own reading takes 4 times as long for a photograph of 70 kB, and Grain's
3 times: the one makes arrays of every field, the other starts threads for every
call. Here a record is read by the thread that wants it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore
import numpy as np
import tensorflow_datasets as tfds

from resnet.errors import InputError

# Records are fetched one by one, in random order.
_READER_OPTIONS = 'readahead_buffer_size:0'
_READER_BUFFER_BYTES = 2**15
# Fields by which a person finds a record.
_NAMES = ('file_name', 'id')
_BYTES = 1
# Number and wire type, length-delimited, of the fields of a message.
_FIELD_1, _FIELD_2 = 0x0A, 0x12


class TfdsRecords:
  """Random access to 'image', 'label', and 'file_name' or 'id' of a split."""

  def __init__(self, parts: Sequence[Any], shape: tuple[int, int, int] | None):
    """Takes TFDS's file instructions, and the shape of images that are pixels.

    Files are opened when they are first read.
    """
    # Path, first record and number of records.
    self._parts = [(str(part.filename), part.skip, part.take) for part in parts]
    self._shape = shape
    self._ends = np.cumsum([count for _, _, count in self._parts])
    # Threads share them: reading one leaves it as it was.
    self._readers: dict[int, Any] = {}

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_readers': {}}  # A process opens its own.

  def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]:
    return [self._record(key) for key in keys]

  def _record(self, key: int) -> dict[str, Any]:
    nth = int(np.searchsorted(self._ends, key, side='right'))
    try:
      return self._parse(self._read(nth, key))
    # Raised by ArrayRecord, by the disk, and for bytes that are no example.
    except (RuntimeError, OSError, ValueError, LookupError) as error:
      reason = str(error).splitlines()[0] if str(error) else repr(error)
      raise InputError(
        f'Record {key} cannot be read from {self._parts[nth][0]}:'
        f' {reason[:300]}. Prepare the set anew, or put a good file there.'
      ) from None

  def _read(self, nth: int, key: int) -> bytes:
    path, first, count = self._parts[nth]
    reader = self._readers.get(nth)
    if reader is None:
      reader = array_record_module.ArrayRecordReader(
        path, _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES
      )
      reader = self._readers.setdefault(nth, reader)
    return reader.read([first + key - (int(self._ends[nth]) - count)])[0]

  def _parse(self, data: bytes) -> dict[str, Any]:
    fields = dict(_features(data))
    start, end, _ = fields['image']
    image: Any
    if self._shape is None:
      image = data[start:end]
    else:
      image = np.frombuffer(data, np.uint8, end - start, start)
      image = image.reshape(self._shape)
    label, _ = _varint(data, fields['label'][0])
    # Negative numbers, of unlabelled splits, are 64 bits long.
    record = {'image': image, 'label': label - ((label >> 63) << 64)}
    for name in _NAMES:
      start, end, kind = fields.get(name, (0, 0, _BYTES))
      if kind == _BYTES and end > start:
        record[name] = data[start:end]
    return record


def is_pixels(feature: Any) -> bool:
  """Whether a TFDS feature is uint8 [H, W, C], stored as bytes."""
  if type(feature) is not tfds.features.Tensor:
    return False
  shape: Any = feature.shape
  return (
    feature.np_dtype == np.uint8
    and len(shape) == 3
    and None not in shape
    and feature.to_json_content().encoding == 'bytes'
  )


def _features(data: bytes) -> Iterator[tuple[str, tuple[int, int, int]]]:
  """Yields the fields of a serialized tf.train.Example.

  Each as (start, end, kind) of its value in `data`: of the bytes, which are one
  value, or of the numbers. Nothing is copied; protobuf would copy an image
  twice. The format is that of example.proto and feature.proto of TensorFlow, as
  protobuf writes it, each message in order of its field numbers:

    Example {1: Features {1 (repeated): {1: name, 2: Feature}}}
    Feature {1: BytesList {1: bytes} or 3: Int64List {1: packed ints}}
  """
  place, end = _enter(data, 0, _FIELD_1)
  while place < end:
    place, entry_end = _enter(data, place, _FIELD_1)
    name_start, name_end = _enter(data, place, _FIELD_1)
    start, stop = _enter(data, name_end, _FIELD_2)
    value = 0, 0, _BYTES  # A feature without values.
    if start < stop:
      tag = data[start]
      start, stop = _enter(data, start, tag)
      if start < stop:
        value = *_enter(data, start, _FIELD_1), tag >> 3
    yield data[name_start:name_end].decode(), value
    place = entry_end


def _enter(data: bytes, place: int, tag: int) -> tuple[int, int]:
  """Returns start and end of the field at `place`, which must be `tag`."""
  if data[place] != tag:
    raise ValueError(f'no tf.train.Example: {data[place]:#x} at byte {place}')
  length, start = _varint(data, place + 1)
  return start, start + length


def _varint(data: bytes, start: int) -> tuple[int, int]:
  """Returns a number of seven bits a byte, and where the next field begins."""
  value = data[start]
  start += 1
  if value < 128:
    return value, start
  value &= 127
  shift = 7
  while True:
    byte = data[start]
    start += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, start
    shift += 7
