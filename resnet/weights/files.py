"""Opens weight files of all formats; runs nothing in them."""

from collections.abc import Callable, Mapping
import json
import math
import os
import re
from typing import Any
import zipfile

import jax.numpy as jnp
import msgpack
import numpy as np
import safetensors

from resnet.errors import InputError
from resnet.files import reading
from resnet.weights import torch_file
from resnet.weights.metadata import Metadata, from_header
from resnet.weights.naming.layout import Opened
from resnet.weights.stored import StoredWeights, from_tensors

# Names of the floating-point types in safetensors.
_DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
# A map of msgpack, one whose first key is a string, and an array: an extension
# of type 1 with shape, dtype and numbers.
_MAP = re.compile(rb'(?s)[\x80-\x8f]|\xde..|\xdf....')
_MSGPACK = re.compile(rb'(?s)(%b)[\xa1-\xbf\xd9]' % _MAP.pattern[4:])
_ARRAY = re.compile(rb'(?s)(\xc7.|\xc8..|\xc9....|[\xd4-\xd8])\x01\x93')
# Names in a file of Flax or Keras; the network of 1,202 layers has 11,000.
_MAX_NAMES = 1 << 14
# Keras' names of the variables of a layer by their number.
_LAYER = {'0': 'kernel', '1': 'bias'}
_NORM = {'0': 'gamma', '1': 'beta', '2': 'moving_mean', '3': 'moving_variance'}


def open_file(
  path: str,
  key: str = '',
  *,
  name: str = '',
  metadata: Callable[[str, Mapping[str, str]], Metadata] = from_header,
) -> StoredWeights:
  """Opens a weight file, or an index of shards.

  The file is of safetensors, torch.save, flax.serialization, `numpy.savez` or
  Keras, whatever its suffix; that of an index is '.index.json'. `key` selects
  one of several state dicts in a file of torch.save. `name` is for messages.
  `metadata` maps the path and the header, which only safetensors have.
  """
  writer, open_ = _find_format(path)
  failure = f'{path} is damaged or of an unknown format'
  if writer:
    failure = f'{path} is not a file of {writer} that can be read'
  with reading(failure, Exception):  # Damage raises many types.
    states = open_(path)
  name = name or path
  if not states:
    raise InputError(
      f'{path} holds no state dict: in PyTorch, type'
      f' torch.save(model.state_dict(), {path!r})'
    )
  if not key and len(states) == 1:
    (key,) = states
  names = {other: f'{name}#{other}' if other else name for other in states}
  if key not in states:
    if set(states) == {''}:
      raise InputError(f'{path} holds only one state dict: leave #{key} out.')
    raise InputError(
      f'{path} has {f"no state dict {key!r}" if key else "several state dicts"}'
      f': type {" or ".join(map(repr, list(names.values())[:20]))}.'
    )
  tensors, read, header = states[key]

  def read_checked(key: str) -> np.ndarray:
    with reading(failure, Exception):
      return read(key)

  return from_tensors(names[key], tensors, read_checked, metadata(path, header))


def _find_format(path: str) -> tuple[str, Callable[[str], dict[str, Opened]]]:
  """Returns the library that wrote a file, if known, and a function to open it.

  That function returns the state dicts in the file by key, '' for a single one.
  """
  with reading(f'{path} cannot be read'), open(path, 'rb') as file:
    start = file.read(1 << 10)
  member = start[30 : 30 + int.from_bytes(start[26:28], 'little')]
  formats = (
    # The length of a header, then the header.
    (start[4:9] == b'\0\0\0\0{', '', _open_safetensors),
    (start.startswith(b'\x89HDF\r\n\x1a\n'), 'Keras', _open_hdf5),
    (start[:2] == b'PK' and member.endswith(b'.npy'), '', _open_npz),
    (_MSGPACK.match(start), '', _open_msgpack),
    # A zip file or, in old versions, a pickle of protocol 2.
    (start.startswith((b'PK', b'\x80')), 'torch.save', torch_file.open_file),
    (path.endswith('.index.json'), '', _open_shards),
    (True, '', _open_safetensors),
  )
  return next((name, open_) for is_it, name, open_ in formats if is_it)


def _open_safetensors(path: str) -> dict[str, Opened]:
  tensors = {}
  with open(path, 'rb') as file:
    if int.from_bytes(file.read(8), 'little') > torch_file.MAX_READ_BYTES:
      raise ValueError('it is of another format, or its header over 2 MiB')
  opened = safetensors.safe_open(path, framework='np')  # Parses the header.
  for key in opened.keys():  # noqa: SIM118
    tensor = opened.get_slice(key)
    dtype = str(tensor.get_dtype())
    tensors[key] = tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype)
  return {'': (tensors, opened.get_tensor, opened.metadata() or {})}


def _open_shards(index: str) -> dict[str, Opened]:
  with open(index) as file:
    # A byte of JSON can cost 20 bytes of memory.
    index_map = json.loads(file.read(1 << 20))['weight_map']
    shards = {key: str(shard) for key, shard in index_map.items()}
  opened, tensors = {}, {}
  for shard in sorted(set(shards.values())):
    path = os.path.join(os.path.dirname(index), shard)
    if os.path.basename(shard) != shard or not os.path.isfile(path):
      raise InputError(
        f'{index} lists {shard!r}, but no such file is beside it: download it.'
      )
    with reading(f'{path} is damaged', Exception):
      opened[shard] = _find_format(path)[1](path)['']
  for key, shard in shards.items():
    if key not in opened[shard][0]:
      raise InputError(
        f'{index} lists {key!r}, but {shard!r} does not hold it.'
      )
    tensors[key] = opened[shard][0][key]
  return {'': (tensors, lambda key: opened[shards[key]][1](key), {})}


def _open_npz(path: str) -> dict[str, Opened]:
  """Reads names and shapes; sizes that a file only claims cost no memory."""
  tensors = {}
  # Refuses a directory that is too large.
  with torch_file.BoundedReader(path) as file, zipfile.ZipFile(file) as archive:
    infos = archive.infolist()
    for info in infos:
      name = info.filename.removesuffix('.npy')
      # Python bounds what it reads at once only of these methods.
      methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
      if name in tensors or info.compress_type not in methods:
        raise ValueError(f'{info.filename!r} is there twice, or not deflated')
      with archive.open(info) as member:
        # Other versions serve structured types; their headers have any size.
        if np.lib.format.read_magic(member) != (1, 0):
          raise ValueError(f'{name!r} is not an array of numbers')
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        size = info.file_size - member.tell()
      if not dtype.hasobject and size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f'{name!r} has {size} bytes, but the shape {shape}')
      tensors[name] = shape, str(dtype)
  if sum(info.file_size for info in infos) > 8 * os.stat(path).st_size:
    raise ValueError('its arrays are over eight times as large as the file')
  archive = np.load(path, allow_pickle=False)  # Stays open for the reader.
  return {'': (tensors, archive.__getitem__, {})}


def _open_msgpack(path: str) -> dict[str, Opened]:
  """Finds the variables in a file of Flax, and reads none."""
  tensors: dict[str, tuple[tuple[int, ...], str]] = {}
  places: dict[str, Any] = {}  # First byte and number of bytes of arrays.
  with open(path, 'rb') as file:
    # Few bytes of a file could give large objects: these are limits of keys.
    limits = {f'max_{kind}_len': 0 for kind in ('array', 'map', 'bin', 'ext')}
    limits |= {'max_str_len': 255, 'max_buffer_size': os.stat(path).st_size}
    unpacker = msgpack.Unpacker(file, **limits)

    def walk(parent: str) -> None:
      for _ in range(unpacker.read_map_header()):
        key = unpacker.unpack()
        start, name = unpacker.tell(), f'{parent}{key}'
        if not isinstance(key, str) or len(name) > 255:
          raise ValueError(f'{name[:99]!r} is not a string, or is too long')
        if name in places or len(places) == _MAX_NAMES:
          raise ValueError(f'{name!r} is there twice, or one of too many')
        places[name] = None
        head = os.pread(file.fileno(), 512, start)
        is_variable = parent or key in ('params', 'batch_stats')
        if is_variable and _MAP.match(head):
          walk(f'{name}/')
          continue
        unpacker.skip()
        if is_variable:
          shape, dtype, offset = _array_head(name, head)
          size = math.prod(shape) * jnp.dtype(dtype).itemsize
          tensors[name], places[name] = (shape, dtype), (start + offset, size)
          if start + offset + size != unpacker.tell():
            raise ValueError(f'{name!r} does not have the shape {shape}')

    walk('')
  if not tensors:
    raise ValueError("it has no 'params'")

  def read(name: str) -> np.ndarray:
    (shape, dtype), (start, size) = tensors[name], places[name]
    with open(path, 'rb') as file:
      file.seek(start)
      return np.frombuffer(file.read(size), jnp.dtype(dtype)).reshape(shape)

  return {'': (tensors, read, {})}


def _array_head(name: str, head: bytes) -> tuple[tuple[int, ...], str, int]:
  """Returns shape, dtype and first byte of the numbers of Flax's extension."""
  match = _ARRAY.match(head)
  if not match:
    raise ValueError(f'{name!r} is not an array')
  unpacker = msgpack.Unpacker()
  unpacker.feed(head[match.end() :])
  shape = tuple(unpacker.unpack() for _ in range(unpacker.read_array_header()))
  dtype, position = unpacker.unpack(), match.end() + unpacker.tell()
  # The codes C4, C5 and C6 precede lengths of 1, 2 and 4 bytes.
  return shape, dtype, position + 1 + (1 << head[position] - 0xC4)


def _open_hdf5(path: str) -> dict[str, Opened]:
  """Opens a file of Keras, and no other file that it refers to.

  Keys are 'layer/variable', as `path` of a variable in Keras.
  """
  try:
    import h5py  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise InputError(f'{path} needs h5py: pip install h5py') from None
  names: list[str] = []
  tensors, places = {}, {}

  def visit(name: str) -> bool | None:
    names.append(name)
    return len(names) > _MAX_NAMES or len(name) > 255 or None

  def read(key: str) -> np.ndarray:
    with h5py.File(path, 'r') as file:
      return np.asarray(file[places[key]])

  with h5py.File(path, 'r') as file:
    if file.visit_links(visit):  # Follows no link.
      raise ValueError('it holds more than a network, or has long names')
    for name in names:
      if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f'{name!r} is a link, which is not followed')
    # Skip the state of an optimizer.
    roots = [root for root in ('model_weights', 'layers') if root in file]
    for name in names:
      node = file[name]
      is_tensor = isinstance(node, h5py.Dataset)
      if not is_tensor or (roots and name.split('/')[0] not in roots):
        continue
      if node.is_virtual or node.external or node.chunks:
        # A few compressed bytes could fill the memory.
        raise ValueError(f'{name!r} is compressed or stored in another file')
      if node.id.get_storage_size() != node.nbytes:
        raise ValueError(f'{name!r} claims more numbers than are stored')
      # 'conv1_conv/conv1_conv/kernel:0', or in the .weights.h5 of Keras 3
      # 'layers/conv2d/vars/0'.
      *_, layer, leaf = ('', *name.split('/'))
      if layer == 'vars':
        group: Any = node.parent
        layer = group.attrs.get('name')
        if layer is None:
          raise ValueError('its layers have no names: save it in newer Keras')
        leaf = (_NORM if len(group) == 4 else _LAYER).get(leaf, leaf)
      key = f'{layer}/{leaf.removesuffix(":0")}'
      if key in tensors:
        raise ValueError(f'two tensors have the name {key!r}')
      tensors[key], places[key] = (tuple(node.shape), str(node.dtype)), name
  return {'': (tensors, read, {})}
