"""Opens files of flax.serialization and `numpy.savez`; runs nothing in them.

Opening reads names and shapes; sizes that a file only claims cost no memory.
"""

from collections.abc import Callable
import math
import os
import re
from typing import Any
import zipfile

import jax.numpy as jnp
import msgpack
import numpy as np

from resnet.weights.naming.layout import Shape
from resnet.weights.torch_file import BoundedReader

# Shapes and dtypes by name, and the function that reads an array.
_Opened = tuple[dict[str, tuple[Shape, str]], Callable[[str], np.ndarray]]
# Of `numpy.savez` and `numpy.savez_compressed`.
_COMPRESSIONS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# A map of msgpack whose first key is a string, unlike a safetensors file.
_MSGPACK = re.compile(
  rb'(?!....\0{4}\{)([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]', re.DOTALL
)


def opener(start: bytes) -> Callable[[str], _Opened] | None:
  """Returns the function that opens a file by its first bytes, if any."""
  length = int.from_bytes(start[26:28], 'little')
  if start[:2] == b'PK' and start[30 : 30 + length].endswith(b'.npy'):
    return _open_npz
  return _open_msgpack if _MSGPACK.match(start) else None


def _open_npz(path: str) -> _Opened:
  tensors = {}
  with BoundedReader(path) as file:
    zipfile.ZipFile(file).close()  # Refuses a directory that is too large.
  archive = np.load(path, allow_pickle=False)  # Stays open for the reader.
  for info in archive.zip.infolist():
    name = info.filename.removesuffix('.npy')
    if name in tensors or info.compress_type not in _COMPRESSIONS:
      raise ValueError(f'{info.filename!r} is there twice or compressed oddly')
    with archive.zip.open(info) as member:
      # Other versions serve structured types; their headers have any size.
      if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f'{name!r} is not an array of numbers')
      shape, _, dtype = np.lib.format.read_array_header_1_0(member)
      size = info.file_size - member.tell()
    if not dtype.hasobject and size != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'{name!r} has {size} bytes, but the shape {shape}')
    tensors[name] = shape, str(dtype)
  return tensors, lambda name: archive[name]


def _open_msgpack(path: str) -> _Opened:
  """Skips the parts of a training state that are no variables."""
  tensors, starts = {}, {}

  def visit(parent: str) -> None:
    for _ in range(values.read_map_header()):
      key = None if is_map() else values.unpack()
      name = f'{parent}{key}'
      # Few bytes of a file could give many long names.
      if not isinstance(key, str) or len(name) > 256 or len(tensors) > 10_000:
        raise ValueError(f'{name[:99]!r} is not a string, too long or too many')
      if not parent and key not in ('params', 'batch_stats'):
        values.skip()
      elif is_map():
        visit(f'{name}/')
      else:
        shape, dtype = _describe(name, values.unpack())
        tensors[name] = shape, str(dtype)
        starts[name] = values.tell() - math.prod(shape) * dtype.itemsize

  def is_map() -> bool:
    first = os.pread(file.fileno(), 1, values.tell())
    return b'\x80' <= first <= b'\x8f' or first in (b'\xde', b'\xdf')

  def read(name: str) -> np.ndarray:
    shape, dtype = tensors[name]
    count = math.prod(shape)
    numbers = np.fromfile(path, jnp.dtype(dtype), count, offset=starts[name])
    return numbers.reshape(shape)

  with open(path, 'rb') as file:
    size = os.path.getsize(path)
    values = msgpack.Unpacker(file, max_buffer_size=size, max_array_len=0)
    visit('')
  return tensors, read


def _describe(name: str, value: Any) -> tuple[Shape, np.dtype]:
  """Returns shape and dtype of an array of Flax: [shape, dtype, bytes]."""
  if not isinstance(value, msgpack.ExtType) or value.code != 1:
    raise ValueError(f'{name!r} is not an array')
  start = msgpack.Unpacker()
  start.feed(value.data[:256])
  start.read_array_header()
  shape, dtype = tuple(map(int, start.unpack())), jnp.dtype(start.unpack())
  # The bytes follow a type and their number, which has 1, 2 or 4 bytes.
  rest = len(value.data) - start.tell() - math.prod(shape) * dtype.itemsize
  if rest not in (2, 3, 5):
    raise ValueError(f'{name!r} has another size than its shape {shape}')
  return shape, dtype
