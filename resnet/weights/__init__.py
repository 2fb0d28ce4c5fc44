"""Reads weights of other libraries, and writes those of PyTorch libraries.

The variables of a network are {'params': ..., 'batch_stats': ...}, as
`model.init` returns them, here as float32 NumPy arrays. If a tensor does not
fit the network, an error names it before any tensor is read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from resnet.errors import InputError
from resnet.files import reading, replacing
from resnet.weights.convert import check_stored, read_stored, to_stored
from resnet.weights.metadata import Metadata, Preprocessing
from resnet.weights.naming.layout import flatten
from resnet.weights.sources import open_stored
from resnet.weights.stored import StoredWeights, from_tensors

__all__ = [
  'Metadata',
  'Preprocessing',
  'StoredWeights',
  'check_stored',
  'from_state_dict',
  'load_weights',
  'open_stored',
  'read_stored',
  'save_weights',
  'to_state_dict',
]


def from_state_dict(
  name: str, state: Mapping[str, Any], **overrides: Any
) -> dict[str, Any]:
  """Converts a state dict of another library to variables.

  Args:
    name: name of the network, for `create_model`.
    state: float32, float16 or bfloat16 tensors or arrays by key, named as in a
      module of `resnet.weights.naming`; a prefix such as 'module.' may precede
      all keys. Variables of Flax may be nested; those of Keras are
      {w.path: w.numpy() for w in model.weights}.
    **overrides: arguments of `create_model`; the number of classes is taken
      from `state`.

  Returns:
    Copies of 'params' and 'batch_stats', as float32.

  Raises:
    InputError: a tensor is missing, unexpected, or of the wrong shape or type;
      nothing is converted.
  """
  return read_stored(_open_state('the state dict', state), name, **overrides)


def _open_state(name: str, state: Mapping[str, Any]) -> StoredWeights:
  if isinstance(state.get('params'), Mapping):
    state = {'/'.join(path): leaf for path, leaf in flatten(state).items()}
  tensors = {}
  for key, leaf in state.items():
    if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
      raise InputError(
        'A state dict maps names to arrays, but this one contains an object of'
        f' type {type(leaf).__name__}: give the inner state dict, such as'
        " checkpoint['state_dict']."
      )
    tensors[key] = tuple(leaf.shape), str(leaf.dtype).removeprefix('torch.')

  def read(key: str) -> np.ndarray:
    tensor = state[key]
    if str(tensor.dtype).startswith('torch.'):
      tensor = tensor.detach().cpu()
    if str(tensor.dtype) == 'torch.bfloat16':  # NumPy has no bfloat16.
      tensor = tensor.float()
    return np.asarray(tensor)

  return from_tensors(name, tensors, read, Metadata())


def to_state_dict(
  name: str,
  variables: Mapping[str, Any],
  naming: str = 'torchvision',
  **overrides: Any,
) -> dict[str, np.ndarray]:
  """Converts variables of a network to a state dict of a library, as copies.

  The naming is 'torchvision' (timm's names for layers that only timm has);
  'timm', which differs only for v2 nets, where it moves the batch norm of the
  stem to the first block; 'transformers' for ImageNet's v1 nets; or 'akamaster'
  for CIFAR nets of basic blocks. The overrides are arguments of `create_model`.
  """
  source = _open_state(f'the variables given for {name}', variables)
  check_stored(source, name, needs_head=False, **overrides)
  return to_stored(variables, naming, name)


def load_weights(source: str, name: str, **overrides: Any) -> dict[str, Any]:
  """Loads the variables of a network from a source.

  The source is a weight file, 'hf-hub:owner/name@revision', an Orbax checkpoint
  or the workdir of a run (see `open_stored`). Name and overrides are those of
  `from_state_dict`.

  Raises:
    InputError: the source does not exist, or does not fit the network.
  """
  return read_stored(open_stored(source), name, **overrides)


def save_weights(
  variables: Mapping[str, Any],
  path: str,
  *,
  metadata: Metadata | None = None,
  naming: str = 'torchvision',
) -> None:
  """Writes a .safetensors file for another library, completely or not at all.

  The file also holds the metadata; the naming is as in `to_state_dict`.
  """
  if not variables.get('params'):
    raise InputError("The variables have no 'params': give those of a network.")
  metadata = metadata or Metadata()
  state = to_stored(variables, naming, metadata.model)
  failure = f'{path} cannot be written'
  with reading(failure, safetensors.SafetensorError), replacing(path) as part:
    safetensors.numpy.save_file(state, part, metadata.to_header())
