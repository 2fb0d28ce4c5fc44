"""Converts the tensors of a source to variables, and back."""

from collections.abc import Collection, Mapping
from typing import Any

from flax import traverse_util
import numpy as np

from resnet.errors import InputError
from resnet.models import create_model
from resnet.weights import fit
from resnet.weights.naming.torchvision import (
  COUNTER,
  NAMINGS,
  TIMM_FIRST_NORM,
  Path,
  counter_keys,
  state_dict_layout,
)
from resnet.weights.sources import StoredWeights


def read_stored(
  source: StoredWeights, name: str, **overrides: Any
) -> dict[str, Any]:
  """Reads the variables of a source; see `weights.from_state_dict`."""
  expected = check_stored(source, name, **overrides)
  flat, counts = {}, {}
  if source.is_torch:
    layout = state_dict_layout(expected, _naming(source))
    # Read one tensor at a time, so that memory holds no second copy of all.
    for key, tensor in layout.items():
      array = tensor.from_torch(source.read([key])[key])
      flat[tensor.path] = np.asarray(array, np.float32)
    if _naming(source) == 'timm':
      _check_timm(flat)
    counters = counter_keys(layout)
    there = [key for key in counters if key in source.tensors]
    counts = {counters[key]: value for key, value in source.read(there).items()}
  else:
    arrays = source.read(list(source.tensors))
    for path in expected:
      flat[path] = np.asarray(arrays['/'.join(path)], np.float32)
  variables = {'batch_stats': {}, **traverse_util.unflatten_dict(flat)}
  if any(np.any(count) for count in counts.values()):
    variables[COUNTER] = traverse_util.unflatten_dict(counts)
  return variables


def to_torch(
  variables: Mapping[str, Any], naming: str = 'torchvision'
) -> dict[str, np.ndarray]:
  """Converts variables to a state dict; see `weights.to_state_dict`."""
  if naming not in NAMINGS:
    raise InputError(f'naming={naming!r} is not one of {", ".join(NAMINGS)}.')
  flat = fit.flatten(variables)
  shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
  layout = state_dict_layout(shapes, naming)
  if naming == 'timm' and ('params', 'head_bn', 'scale') in flat:
    _check_timm(flat)
  state = {key: t.to_torch(flat[t.path]) for key, t in layout.items()}
  counts = traverse_util.flatten_dict(dict(variables.get(COUNTER, {})))
  for key, path in counter_keys(layout).items():
    state[key] = np.array(counts.get(path, 0), np.int64)
  return state


def check_stored(
  source: StoredWeights, name: str, **overrides: Any
) -> dict[Path, fit.Shape]:
  """Checks that a source fits a network, without reading a tensor.

  Returns:
    The shapes of the network's variables by path.
  """
  metadata = source.metadata
  if metadata.model not in (None, name):
    raise InputError(
      f'{source.name} holds weights of {metadata.model}, not of {name}.'
    )
  # Networks with different shortcuts can have the same shapes.
  theirs, ours = (
    getattr(create_model(name, **fields), 'shortcut', None)
    for fields in (metadata.overrides, overrides)
  )
  if metadata.model and theirs != ours:
    raise InputError(
      f'{source.name} holds weights of {name} with shortcut {theirs!r}, not'
      f' {ours!r}.'
    )
  expected = fit.expected_shapes(name, source.tensors, overrides)
  optional: Collection[str] = ()
  if source.is_torch:
    layout = state_dict_layout(expected, _naming(source))
    wanted = {key: tensor.shape for key, tensor in layout.items()}
    optional = counter_keys(layout).keys()
  else:
    wanted = {'/'.join(path): shape for path, shape in expected.items()}
  fit.check_fit(source.name, source.tensors, wanted, optional=optional)
  return expected


def _naming(source: StoredWeights) -> str:
  is_timm = f'{TIMM_FIRST_NORM}.weight' in source.tensors
  return 'timm' if is_timm else 'torchvision'


def _check_timm(flat: Mapping[Path, Any]) -> None:
  """Raises InputError if timm's v2 net would compute other logits.

  timm pools before the first batch norm, which gives the same result in
  evaluation unless a scale is negative. If the first shortcut is not a
  projection, timm does not activate its input.
  """
  if ('params', 'stage1_block1', 'conv3', 'kernel') not in flat:
    raise InputError(
      "timm's v2 nets of basic blocks are different networks: the input of"
      ' their first shortcut is not activated.'
    )
  if np.any(np.asarray(flat['params', 'stem_bn', 'scale']) < 0):
    raise InputError(
      f"'{TIMM_FIRST_NORM}.weight' has numbers below zero: timm's v2 net, which"
      ' pools before that batch norm, computes other logits.'
    )
