"""Checks that tensors fit a network; converts them to variables, and back."""

from collections.abc import Mapping
import contextlib
from typing import Any

from flax import traverse_util
import numpy as np

from resnet.errors import InputError, nearest
from resnet.models import abstract_variables, create_model
from resnet.weights.naming import NAMINGS, ORBAX
from resnet.weights.naming import layout as base
from resnet.weights.stored import StoredWeights

_FLOATS = ('float32', 'float16', 'bfloat16')


def count_classes(variables: Mapping[str, Any]) -> int:
  """Returns the number of classes of a network, 0 if it has no head."""
  head = variables['params'].get('head')
  return len(head['bias']) if head else 0


def read_stored(
  source: StoredWeights, name: str, *, needs_head: bool = True, **overrides: Any
) -> dict[str, Any]:
  """Reads the variables of a source; see `weights.from_state_dict`."""
  shapes = check_stored(source, name, needs_head=needs_head, **overrides)
  layout = source.naming.layout(shapes)
  flat = {
    tensor.path: np.asarray(tensor.from_stored(source.read(key)), np.float32)
    for key, tensor in layout.items()
  }
  source.naming.check(flat)
  return {'batch_stats': {}, **traverse_util.unflatten_dict(flat)}


def to_stored(
  variables: Mapping[str, Any],
  naming: str = 'torchvision',
  name: str | None = None,
) -> dict[str, np.ndarray]:
  """Converts variables to a state dict; see `weights.to_state_dict`."""
  if naming not in NAMINGS:
    raise InputError(
      f'naming={naming!r} cannot be written: give one of {", ".join(NAMINGS)}.'
    )
  if name:
    NAMINGS[naming].check_model(name)
  elif NAMINGS[naming].models != '.*':
    raise InputError(
      f'naming={naming!r} needs the name of the network: give metadata.model.'
    )
  flat = base.flatten(variables)
  shapes = {path: np.shape(leaf) for path, leaf in flat.items()}
  layout = NAMINGS[naming].layout(shapes)
  NAMINGS[naming].check(flat)
  state = {key: t.to_stored(flat[t.path]) for key, t in layout.items()}
  counts = base.counter_keys(layout)
  return state | {key: np.zeros((), np.int64) for key in counts}


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
) -> dict[base.Path, base.Shape]:
  """Checks that a source fits a network, without reading a tensor.

  If `needs_head`, a source that has all tensors but those of the head does not
  fit. Returns the shapes by path of the variables that the source has.
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
  source.naming.check_model(name)
  shapes = _expected_shapes(source, name, overrides)
  layout = source.naming.layout(shapes)
  head = [key for key, tensor in layout.items() if tensor.path[1] == 'head']
  has_head = any(key in source.tensors for key in head)
  if not has_head:
    layout = {key: x for key, x in layout.items() if key not in head}
  _check_fit(source, layout)
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
  return {tensor.path: shapes[tensor.path] for tensor in layout.values()}


def _expected_shapes(
  source: StoredWeights, name: str, overrides: Mapping[str, Any]
) -> dict[base.Path, base.Shape]:
  """Returns the shape of each variable of a network by path.

  Image channels, and classes unless overridden, are those of the source.
  """
  variables = abstract_variables(create_model(name, **overrides))
  shapes = {path: leaf.shape for path, leaf in base.flatten(variables).items()}
  theirs = {}
  for key, tensor in source.naming.layout(shapes).items():
    shape, _ = source.tensors.get(key, ((), ''))
    if len(shape) >= len(tensor.axes):
      theirs[tensor.path] = tuple(shape[i] for i in np.argsort(tensor.axes))
  num_classes = theirs.get(('params', 'head', 'bias'), (0,))[0]
  for path, shape in shapes.items():
    if path[1] == 'head' and num_classes and 'num_classes' not in overrides:
      shapes[path] = (*shape[:-1], num_classes)
    is_stem = path[1:] in (('stem_conv', 'kernel'), ('stem_conv1', 'kernel'))
    if is_stem and theirs.get(path, shape)[2] == 1:  # Grey instead of RGB.
      shapes[path] = (*shape[:2], 1, shape[3])
  return shapes


def _check_fit(source: StoredWeights, layout: base.Layout) -> None:
  """Raises InputError for the first tensor that does not fit."""
  where, tensors = source.name, source.tensors
  counters = base.counter_keys(layout)
  for key, tensor in layout.items():
    if key not in tensors:
      extra = [k for k in tensors if k not in layout and k not in counters]
      raise InputError(f'{where} has no tensor {key!r}.{nearest(key, extra)}')
    shape, dtype = tensors[key]
    if shape != tensor.shape:
      raise InputError(
        f'{key!r} in {where} has the shape {list(shape)}; the network has'
        f' {list(tensor.shape)}.'
      )
    if dtype not in _FLOATS:
      raise InputError(
        f'{key!r} in {where} is {dtype}, not one of {", ".join(_FLOATS)}.'
      )
  for key, (shape, dtype) in tensors.items():
    if key in counters and (shape or not dtype.lower().startswith(('i', 'u'))):
      raise InputError(
        f'{key!r} in {where} is {dtype}{list(shape)}, not one integer.'
      )
    if key not in layout and key not in counters:
      raise InputError(f'{where} has {key!r}, but the network does not.')
