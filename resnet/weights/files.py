"""Opens weight files of all formats; runs nothing in them."""

from collections.abc import Callable, Mapping
import json
import math
import os
import pathlib
import re
from typing import Any
import zipfile

from flax import serialization, traverse_util
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
# A map of msgpack whose first key is a string.
_MSGPACK = re.compile(rb'(?s)([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]')
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
    if '' in states:
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
  """Returns what wrote a file, if that is sure, and the function to open it.

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
  with safetensors.safe_open(path, framework='np') as file:
    for key in file.keys():  # noqa: SIM118
      tensor = file.get_slice(key)
      dtype = str(tensor.get_dtype())
      tensors[key] = tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype)
    header = file.metadata() or {}

  def read(key: str) -> np.ndarray:
    with safetensors.safe_open(path, framework='np') as file:
      return file.get_tensor(key)

  return {'': (tensors, read, header)}


def _open_shards(index: str) -> dict[str, Opened]:
  with open(index) as file:
    shards = {k: str(v) for k, v in json.load(file)['weight_map'].items()}
  opened, tensors = {}, {}
  for shard in sorted(set(shards.values())):
    path = os.path.join(os.path.dirname(index), shard)
    if os.path.basename(shard) != shard or not os.path.isfile(path):
      raise InputError(
        f'{index} lists {shard!r}, but no such file is beside it.'
      )
    with reading(f'{path} is damaged', Exception):
      opened[shard] = _open_safetensors(path)['']
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
  with torch_file.BoundedReader(path) as file:
    zipfile.ZipFile(file).close()  # Refuses a directory that is too large.
  archive = np.load(path, allow_pickle=False)  # Stays open for the reader.
  for info in archive.zip.infolist():
    name = info.filename.removesuffix('.npy')
    if name in tensors:
      raise ValueError(f'{info.filename!r} is there twice')
    with archive.zip.open(info) as member:
      # Other versions serve structured types; their headers have any size.
      if np.lib.format.read_magic(member) != (1, 0):
        raise ValueError(f'{name!r} is not an array of numbers')
      shape, _, dtype = np.lib.format.read_array_header_1_0(member)
      size = info.file_size - member.tell()
    if not dtype.hasobject and size != math.prod(shape) * dtype.itemsize:
      raise ValueError(f'{name!r} has {size} bytes, but the shape {shape}')
    tensors[name] = shape, str(dtype)
  if (
    sum(x.file_size for x in archive.zip.infolist()) > 8 * os.stat(path).st_size
  ):
    raise ValueError('it holds eight times more numbers than weights need')
  return {'': (tensors, lambda name: archive[name], {})}


def _open_msgpack(path: str) -> dict[str, Opened]:
  """Reads a whole file of Flax, but keeps only the variables."""
  tree = serialization.msgpack_restore(pathlib.Path(path).read_bytes())
  parts = {k: tree[k] for k in ('params', 'batch_stats') if k in tree}
  arrays, tensors = {}, {}
  for keys, array in traverse_util.flatten_dict(parts).items():
    # Few bytes of a file could give many long names.
    if set(map(type, keys)) != {str} or len(name := '/'.join(keys)) > 256:
      raise ValueError(f'{str(keys)[:99]} is not a string, or is too long')
    if not isinstance(array, np.ndarray):
      raise ValueError(f'{name!r} is not an array')
    arrays[name], tensors[name] = array, (array.shape, str(array.dtype))
  return {'': (tensors, arrays.__getitem__, {})}


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

  def read(key: str) -> np.ndarray:
    with h5py.File(path, 'r') as file:
      return np.asarray(file[places[key]])

  with h5py.File(path, 'r') as file:
    file.visit_links(names.append)  # Follows no link.
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
