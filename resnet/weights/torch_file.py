"""Reads files of torch.save without PyTorch, and runs nothing in them.

In both formats, a zip file and the older sequence of pickles, a pickle
describes the tensors (see `torch_pickle`); their values are stored outside the
pickle.
"""

import io
import os
from typing import Any, BinaryIO
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np

from resnet.errors import reason_of
from resnet.weights.naming.layout import Opened
from resnet.weights.torch_pickle import ONLY, Machine, Tensor

# The pickle of a training checkpoint is smaller than a megabyte, and so is the
# directory of its zip file. One byte of a directory can cost 15 of memory.
MAX_READ_BYTES = 1 << 21
# The first number in a file of the older format, and its version.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


class BoundedReader(io.FileIO):
  """Bounds one read; ZipFile reads a whole directory or pickle in one."""

  def read(self, size: int | None = -1, /) -> Any:
    if size is not None and size > MAX_READ_BYTES:
      raise ValueError(f'its directory or pickle exceeds 2 MiB: save {ONLY}')
    return super().read(size)


def open_file(path: str) -> dict[str, Opened]:
  """Finds the state dicts of a file of torch.save, and reads no tensor.

  Returns them by their keys in the checkpoint, joined by '/'; the key is '' if
  the checkpoint itself is a state dict. A file that is damaged, or holds more
  than tensors and plain data, raises any exception.
  """
  with BoundedReader(path) as file:
    load = _load_zip if file.read(2) == b'PK' else _load_legacy
    machine = Machine()
    try:
      value = load(file, machine)
    except IndexError:
      raise ValueError('the stack of its pickle is too short') from None
    except Exception as error:  # Its text can contain a whole pickle.
      raise ValueError(reason_of(error)[:300]) from None
    size = file.seek(0, os.SEEK_END)
  for key, storage in machine.storages.items():
    if not 0 <= storage.start <= size - storage.num_bytes:
      raise ValueError(f'storage {key!r:.99} is missing or cut off')
  found = _state_dicts(value, '', 2, set())
  for state in found.values():
    if sum(tensor.num_bytes for tensor in state.values()) > 2 * size:
      raise ValueError('its tensors are over twice as large as the file')
  return {key: _open_state(path, state) for key, state in found.items()}


def _open_state(path: str, state: dict[str, Tensor]) -> Opened:
  def read(key: str) -> np.ndarray:
    tensor, storage = state[key], state[key].storage
    dtype = jnp.dtype(storage.dtype)
    with open(path, 'rb') as file:
      if storage.crc:
        file.seek(storage.start)
        if zlib.crc32(file.read(storage.num_bytes)) != storage.crc:
          raise ValueError('the checksum of a storage is wrong')
        storage.crc = 0  # Many tensors can share a storage; check it once.
      file.seek(storage.start + tensor.first * dtype.itemsize)
      data = file.read(tensor.span * dtype.itemsize)
    numbers = np.frombuffer(data, dtype, tensor.span)
    strides = [dtype.itemsize * stride for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides)

  tensors = {key: (x.shape, x.storage.dtype) for key, x in state.items()}
  return tensors, read, {}


def _state_dicts(
  value: Any, name: str, depth: int, seen: set[int]
) -> dict[str, dict[str, Tensor]]:
  """Returns the state dicts in a value, which is one if it has tensors."""
  # The same dict may be in a file often; look at each one once.
  if not isinstance(value, dict) or id(value) in seen:
    return {}
  seen.add(id(value))
  named = {key: item for key, item in value.items() if isinstance(key, str)}
  inner: dict[str, dict[str, Tensor]] = {}
  for key, item in named.items() if depth else ():
    if len(key) < 256:  # Each path below it contains the key.
      path = f'{name}/{key}' if name else key
      inner |= _state_dicts(item, path, depth - 1, seen)
  tensors = {key: x for key, x in named.items() if isinstance(x, Tensor)}
  # Scalars alone are metrics, such as the best loss.
  if any(tensor.shape for tensor in tensors.values()):
    inner[name] = tensors
  return inner


def _load_zip(file: BinaryIO, machine: Machine) -> Any:
  with zipfile.ZipFile(file) as archive:
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    root = next(iter(members), '').partition('/')[0]
    if f'{root}/data.pkl' not in members:
      raise ValueError('it is another kind of zip file')
    for name, info in members.items():
      parts = name.replace('\\', '/').split('/')
      if parts[0] != root or not {'', '.', '..'}.isdisjoint(parts):
        raise ValueError(f'the member {name!r} is not in the folder {root!r}')
      # A few compressed bytes could fill the memory.
      is_stored = info.compress_type == zipfile.ZIP_STORED
      if not is_stored or info.compress_size != info.file_size:
        raise ValueError(f'the member {name!r} is compressed')
      if not info.CRC:  # With set_crc32_options(False), PyTorch writes zeros.
        del info.CRC  # ZipFile then makes no check.
    if len(members) != len(infos):
      raise ValueError('two members have the same name')
    order = members.get(f'{root}/byteorder')
    if order and archive.read(order) != b'little':
      raise ValueError('its numbers are not little-endian')
    value = machine.run(io.BytesIO(archive.read(f'{root}/data.pkl')))
  for key, storage in machine.storages.items():
    info = members.get(f'{root}/data/{key}')
    if info is None or info.file_size != storage.num_bytes:
      raise ValueError(f'storage {key!r} is missing or has the wrong size')
    file.seek(info.header_offset)
    header = file.read(30)
    lengths = (int.from_bytes(header[i : i + 2], 'little') for i in (26, 28))
    storage.start = info.header_offset + 30 + sum(lengths)
    storage.crc = getattr(info, 'CRC', 0)
    if header[:4] != b'PK\3\4':
      raise ValueError(f'storage {key!r} is damaged')
  return value


def _load_legacy(file: BinaryIO, machine: Machine) -> Any:
  file.seek(0)
  pickles = io.BytesIO(file.read(MAX_READ_BYTES))
  if machine.run(pickles) != _MAGIC or machine.run(pickles) != _VERSION:
    raise ValueError('it is another kind of pickle')
  system = machine.run(pickles)
  if not isinstance(system, dict) or system.get('little_endian') is not True:
    raise ValueError('its numbers are not little-endian')
  value, keys = machine.run(pickles), machine.run(pickles)
  # The storages follow in this order, each after its count of numbers.
  position = pickles.tell()
  for key in keys if isinstance(keys, list) else ():
    storage = machine.storages.get(key) if isinstance(key, str) else None
    file.seek(position)
    count = int.from_bytes(file.read(8), 'little')
    if storage is None or storage.start >= 0 or count != storage.count:
      raise ValueError(f'the storage at byte {position} does not match')
    storage.start = position + 8
    position = storage.start + storage.num_bytes
  return value
