"""Weights that come and go: PyTorch's state dicts, safetensors, Orbax, the hub.

A network's variables are {'params': ..., 'batch_stats': ...} as `model.init`
returns them, here with NumPy leaves, float32. Whatever does not fit a network
is refused by name, before any of it is read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnet.errors import InputError
from resnet.files import replacing
from resnet.weights import fit
from resnet.weights.convert import check_source, read_source, to_torch
from resnet.weights.fit import image_channels
from resnet.weights.metadata import Metadata, Preprocessing
from resnet.weights.sources import (
  Source,
  best_step,
  open_source,
  score,
  split_raw,
)

__all__ = [
  'Metadata',
  'Preprocessing',
  'Source',
  'best_step',
  'check_source',
  'from_state_dict',
  'image_channels',
  'load_weights',
  'open_source',
  'read_source',
  'save_weights',
  'score',
  'split_raw',
  'to_state_dict',
]


def from_state_dict(
  name: str, state: Mapping[str, Any], **overrides: Any
) -> dict[str, Any]:
  """Returns the variables of a state dict of torchvision or timm.

  Args:
    name: of the network, as `create_model` takes it.
    state: tensors or arrays by key; float32, or float16 and bfloat16, which
      become float32.
    **overrides: of `create_model`; the number of classes is that of `state`.

  Returns:
    'params' and 'batch_stats', copied. Where `state` has counted updates
    (num_batches_tracked), the counts come along in a collection of that name,
    which networks ignore and `to_state_dict` gives back.

  Raises:
    InputError: a tensor is missing, unexpected, or of another shape or type;
      nothing was converted then.
  """
  source = Source(
    name='the state dict',
    is_torch=True,
    tensors={key: fit.describe(value) for key, value in state.items()},
    read=lambda keys: {key: _numpy(state[key]) for key in keys},
  )
  return read_source(source, name, **overrides)


def _numpy(tensor: Any) -> np.ndarray:
  if str(tensor.dtype).startswith('torch.'):
    tensor = tensor.detach().cpu()
  if str(tensor.dtype) == 'torch.bfloat16':  # Which NumPy has not.
    tensor = tensor.float()
  return np.asarray(tensor)


def to_state_dict(
  name: str,
  variables: Mapping[str, Any],
  naming: str = 'torchvision',
  **overrides: Any,
) -> dict[str, np.ndarray]:
  """Returns the state dict of a network's variables, copied.

  Args:
    name: of the network.
    variables: of the network.
    naming: 'torchvision' (timm's names for layers that only timm has) or
      'timm'; these are the same but for v2 nets, where 'timm' moves the stem's
      batch norm into the first block.
    **overrides: of `create_model`.
  """
  check_source(
    Source(
      name=f'the variables given for {name}',
      is_torch=False,
      tensors={
        '/'.join(path): fit.describe(leaf)
        for path, leaf in fit.flatten(variables).items()
      },
    ),
    name,
    **overrides,
  )
  return to_torch(variables, naming)


def load_weights(source: str, name: str, **overrides: Any) -> dict[str, Any]:
  """Returns the variables of a network from wherever they lie.

  Args:
    source: a .safetensors file, 'hf-hub:owner/name@revision', an Orbax
      checkpoint or the workdir of a run (see `open_source`).
    name: of the network.
    **overrides: of `create_model`; the number of classes is that of the source.

  Raises:
    InputError: there is no such source, or it does not fit the network.
  """
  return read_source(open_source(source), name, **overrides)


def save_weights(
  variables: Mapping[str, Any],
  path: str,
  *,
  metadata: Metadata | None = None,
  naming: str = 'torchvision',
) -> None:
  """Writes a .safetensors file that torchvision (or timm) loads.

  Args:
    variables: of a network.
    path: of the file; it is written whole or not at all.
    metadata: travels in the file.
    naming: as in `to_state_dict`.
  """
  if not variables.get('params'):
    raise InputError('Nothing to save: give the variables of a network.')
  state = to_torch(variables, naming)
  header = (metadata or Metadata()).to_header()
  try:
    with replacing(path) as part:
      safetensors.numpy.save_file(state, part, metadata=header)
  except (OSError, safetensors.SafetensorError) as error:
    raise InputError(f'{path} cannot be written: {error}.') from None
