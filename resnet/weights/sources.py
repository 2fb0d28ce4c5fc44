"""Sources of weights: files, the Hugging Face hub, Orbax folders.

Opening a source reads no tensors, so that callers can first check whether they
fit. Nothing in a source can run.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from resnet import backend
from resnet.checkpoint_folder import find_arrays
from resnet.download import HUB
from resnet.errors import InputError
from resnet.files import reading
from resnet.weights import files
from resnet.weights import metadata as metadata_lib
from resnet.weights.hub import open_hub, open_repository
from resnet.weights.metadata import Metadata
from resnet.weights.stored import StoredWeights, from_tensors

# The network in the package. README.md beside it says what it was trained on.
PACKAGED = str(
  pathlib.Path(__file__).parents[1] / 'pretrained/cifar10_resnet20.safetensors'
)


def open_stored(source: str) -> StoredWeights:
  """Opens a file, 'hf-hub:owner/name[@revision]' or a folder.

  A file is of a format of `files.open_file`, whatever its suffix. If
  a file of torch.save holds several state dicts, 'SOURCE#KEY' selects one.
  A folder is an Orbax checkpoint, the workdir of a run, or has the files of a
  repository of the hub. In a workdir, this opens the checkpoint with the
  highest `score`, or the latest one if none was evaluated. If the run keeps
  moving averages, it opens those; 'FOLDER#raw' selects the weights themselves.

  Raises:
    InputError: the source does not exist, is damaged, or holds more than
      tensors and plain data.
  """
  path, key = os.path.expanduser(source), ''
  if '#' in path and not os.path.exists(path):
    path, _, key = path.rpartition('#')
  if path.startswith(HUB):
    return open_hub(path, key)
  if os.path.isdir(path):
    is_run = os.path.isdir(os.path.join(path, 'checkpoints'))
    if not is_run and (stored := open_repository(path, key)):
      return stored
    if key not in ('', 'raw'):
      raise InputError(f'{path} is a run or a checkpoint: leave #{key} out.')
    return _open_folder(path, is_raw=bool(key))
  if not os.path.isfile(path):
    raise InputError(
      f'There are no weights at {source!r}: give a .safetensors, .pth, .npz,'
      ' .msgpack or .h5 file, a workdir, an Orbax checkpoint or'
      f' {HUB}OWNER/NAME@REVISION.'
    )
  return files.open_file(path, key)


def _open_folder(folder: str, *, is_raw: bool) -> StoredWeights:
  # Start JAX first, so that its errors are not reported as the folder's.
  backend.devices()
  path = find_arrays(os.path.abspath(folder))
  config = os.path.join(folder, 'config.json')
  is_workdir = os.path.exists(config)
  metadata = metadata_lib.from_workdir(config) if is_workdir else Metadata()
  checkpointer = ocp.PyTreeCheckpointer()
  # Damaged files make Orbax raise many types.
  with reading(f'{path} is not an Orbax checkpoint', Exception):
    item: Any = checkpointer.metadata(path).item_metadata
    has_ema = bool(item.tree.get('ema')) and not is_raw
    saved = item.tree['ema'] if has_ema else item.tree
    tree = {part: saved.get(part) or {} for part in ('params', 'batch_stats')}
    leaves: Any = traverse_util.flatten_dict(tree, sep='/')
    tensors = {k: (tuple(x.shape), str(x.dtype)) for k, x in leaves.items()}

  @functools.cache
  def restore() -> Any:  # Orbax restores all tensors at once.
    item = {'ema': tree} if has_ema else tree
    one = ocp.RestoreArgs(restore_type=np.ndarray)
    each = jax.tree.map(lambda _: one, item)
    args = ocp.args.PyTreeRestore(item, restore_args=each, partial_restore=True)
    with reading(f'{path} cannot be read', Exception):
      restored = checkpointer.restore(path, args=args)
    return traverse_util.flatten_dict(restored.get('ema', restored), sep='/')

  metadata = dataclasses.replace(metadata, ema=has_ema)
  return from_tensors(path, tensors, lambda key: restore()[key], metadata)
