"""Opens weight files of all formats."""

from collections.abc import Callable
import json
import os

import numpy as np
import safetensors

from resnet.errors import InputError
from resnet.files import reading
from resnet.weights import keras_file, torch_file, tree_file
from resnet.weights.metadata import Metadata, from_header
from resnet.weights.naming.layout import Read, Tensors
from resnet.weights.stored import StoredWeights, from_tensors

# Names of the floating-point types in safetensors.
_DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}


def open_file(
  path: str,
  key: str = '',
  *,
  name: str = '',
  metadata: Callable[[str, dict[str, str]], Metadata] = from_header,
) -> StoredWeights:
  """Opens a weight file, or an index of shards.

  Args:
    path: a file of safetensors, torch.save, flax.serialization or
      `numpy.savez`, whatever its suffix; that of an index is '.index.json'.
    key: selects one of several state dicts in a file of torch.save.
    name: name of the source, for messages; by default the path.
    metadata: (path, header) -> metadata of the weights; only safetensors have a
      header.
  """
  with reading(f'{path} cannot be read'), open(path, 'rb') as file:
    start = file.read(1 << 10)
  open_tree = tree_file.opener(start)
  # torch.save writes a zip file or, in old versions, a pickle of protocol 2. A
  # safetensors file starts with the length of its header, then '{'.
  is_torch = start.startswith((b'PK', b'\x80')) and start[8:9] != b'{'
  if is_torch and not open_tree:
    return _open_torch(path, key, name or path, metadata(path, {}))
  if key:
    raise InputError(f'{path} holds only one state dict: leave #{key} out.')
  header = {}
  if start.startswith(keras_file.MAGIC):
    tensors, read = keras_file.read_index(path)
  elif open_tree:
    damage = f'{path} is damaged or cut off'
    with reading(damage, Exception):
      tensors, read_one = open_tree(path)

    def read(keys: list[str]) -> dict[str, np.ndarray]:
      with reading(damage, Exception):
        return {key: read_one(key) for key in keys}

  else:
    open_ = _shards if path.endswith('.index.json') else _shard
    tensors, header, read = open_(path)
  return from_tensors(name or path, tensors, read, metadata(path, header))


def _shard(path: str) -> tuple[Tensors, dict[str, str], Read]:
  """Returns shapes and header of a file of safetensors, and its reader."""
  try:
    with safetensors.safe_open(path, framework='np') as file:
      tensors = {}
      for key in file.keys():  # noqa: SIM118
        tensor = file.get_slice(key)
        dtype = str(tensor.get_dtype())
        tensors[key] = tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype)
      header = file.metadata() or {}
  except Exception as error:  # SafetensorError derives from Exception alone.
    raise InputError(
      f'{path} is damaged or of an unknown format: {error}.'
    ) from None

  def read(keys: list[str]) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework='np') as file:
      return {key: file.get_tensor(key) for key in keys}

  return tensors, header, read


def _shards(index: str) -> tuple[Tensors, dict[str, str], Read]:
  """Returns the same for an index of shards, which has no header."""
  with reading(f'{index} is damaged'), open(index) as file:
    shards = {k: str(v) for k, v in json.load(file)['weight_map'].items()}
  tensors, reads = {}, {}
  for shard in sorted(set(shards.values())):
    path = os.path.join(os.path.dirname(index), shard)
    if os.path.basename(shard) != shard or not os.path.isfile(path):
      raise InputError(
        f'{index} lists {shard!r}, but no such file is beside it.'
      )
    inside, _, reads[shard] = _shard(path)
    for key in (key for key, name in shards.items() if name == shard):
      if key not in inside:
        raise InputError(
          f'{index} lists {key!r}, but {shard!r} does not hold it.'
        )
      tensors[key] = inside[key]

  def read(keys: list[str]) -> dict[str, np.ndarray]:
    return {key: reads[shards[key]]([key])[key] for key in keys}

  return tensors, {}, read


def _open_torch(
  path: str, key: str, name: str, metadata: Metadata
) -> StoredWeights:
  states = torch_file.read_index(path)
  if not states:
    raise InputError(
      f'{path} holds no state dict: in PyTorch, type'
      f' torch.save(model.state_dict(), {path!r})'
    )
  if not key and len(states) == 1:
    (key,) = states
  names = {other: f'{name}#{other}' if other else name for other in states}
  if key not in states:
    raise InputError(
      f'{path} has {f"no state dict {key!r}" if key else "several state dicts"}'
      f': type {" or ".join(map(repr, list(names.values())[:20]))}.'
    )
  state = states[key]
  tensors = {name: (x.shape, x.storage.dtype) for name, x in state.items()}

  def read(keys: list[str]) -> dict[str, np.ndarray]:
    return {name: torch_file.read_tensor(path, state[name]) for name in keys}

  return from_tensors(names[key], tensors, read, metadata)
