"""Converts the tensors of a source to variables, and back."""

from collections.abc import Mapping
import contextlib
from typing import Any

from flax import traverse_util
import numpy as np

from resnet.errors import InputError
from resnet.models import create_model
from resnet.weights import fit
from resnet.weights.naming import NAMINGS, ORBAX
from resnet.weights.naming.layout import COUNTER, Path, Shape, counter_keys
from resnet.weights.stored import StoredWeights


def read_stored(
  source: StoredWeights, name: str, *, needs_head: bool = True, **overrides: Any
) -> dict[str, Any]:
  """Reads the variables of a source; see `weights.from_state_dict`."""
  layout = source.naming.layout(
    check_stored(source, name, needs_head=needs_head, **overrides)
  )
  # Read one tensor at a time, so that memory holds no second copy of all; Orbax
  # restores all of them in any case.
  keys = list(layout)
  parts = [keys] if source.naming is ORBAX else [[key] for key in keys]
  flat = {
    layout[key].path: np.asarray(layout[key].from_stored(array), np.float32)
    for part in parts
    for key, array in source.read(part).items()
  }
  source.naming.check(flat)
  counters = counter_keys(layout)
  there = [key for key in counters if key in source.tensors]
  counts = {}
  if there:
    counts = {counters[key]: value for key, value in source.read(there).items()}
  variables = {'batch_stats': {}, **traverse_util.unflatten_dict(flat)}
  if any(np.any(count) for count in counts.values()):
    variables[COUNTER] = traverse_util.unflatten_dict(counts)
  return variables


def to_stored(
  variables: Mapping[str, Any], naming: str = 'torchvision'
) -> dict[str, np.ndarray]:
  """Converts variables to a state dict; see `weights.to_state_dict`."""
  if naming not in NAMINGS:
    raise InputError(
      f'naming={naming!r} cannot be written: give one of {", ".join(NAMINGS)}.'
    )
  flat = fit.flatten(variables)
  shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
  layout = NAMINGS[naming].layout(shapes)
  NAMINGS[naming].check(flat)
  state = {key: t.to_stored(flat[t.path]) for key, t in layout.items()}
  counts = traverse_util.flatten_dict(dict(variables.get(COUNTER, {})))
  for key, path in counter_keys(layout).items():
    state[key] = np.array(counts.get(path, 0), np.int64)
  return state


def find_overrides(source: StoredWeights, name: str) -> dict[str, str]:
  """Returns the arguments of `create_model` with which a source fits.

  Other people's CIFAR networks can have projections (option B) in place of the
  paper's zero padding, and do not say so.
  """
  default = getattr(create_model(name), 'shortcut', None)
  if source.metadata.model is None and default == 'A':
    with contextlib.suppress(InputError):
      check_stored(source, name, needs_head=False, shortcut='B')
      return {'shortcut': 'B'}
  return source.metadata.overrides


def check_stored(
  source: StoredWeights, name: str, *, needs_head: bool = True, **overrides: Any
) -> dict[Path, Shape]:
  """Checks that a source fits a network, without reading a tensor.

  Args:
    source: the source.
    name: name of the network.
    needs_head: refuse a source that has all tensors but those of the head.
    **overrides: arguments of `create_model`.

  Returns:
    The shapes by path of the network's variables that the source has.
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
  layout_of = source.naming.layout
  expected = fit.expected_shapes(name, source.tensors, overrides, layout_of)
  layout = layout_of(expected)
  head = [key for key, tensor in layout.items() if tensor.path[1] == 'head']
  has_head = any(key in source.tensors for key in head)
  if not has_head:
    expected = {p: shape for p, shape in expected.items() if p[1] != 'head'}
    layout = layout_of(expected)
  fit.check_fit(
    source.name,
    source.tensors,
    {key: tensor.shape for key, tensor in layout.items()},
    optional=counter_keys(layout).keys(),
  )
  if not (has_head or metadata.model or source.naming is ORBAX) and ours == 'A':
    raise InputError(
      f'{source.name} has no head, whose name would say how the shortcuts of'
      f' {name} pad channels: add {", ".join(head)} (torchvision) or'
      ' linear.bias, linear.weight (akamaster).'
    )
  if needs_head and not has_head:
    raise InputError(
      f'{source.name} has no head ({", ".join(head)}): train a new one with'
      ' --config=configs/finetune.py:SOURCE,DATASET, or compute features with'
      ' `python -m resnet.tools.predict --weights=SOURCE --features=pooled'
      ' --out=FILE.npz IMAGE`.'
    )
  return expected
