"""Checks that names, shapes and dtypes of tensors fit a network."""

from collections.abc import Callable, Collection, Mapping
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from resnet.errors import InputError, nearest
from resnet.models import create_model
from resnet.weights.naming.layout import Layout, Path, Shape, Shapes, Tensors

_FLOATS = ('float32', 'float16', 'bfloat16')
_HEAD = 'params', 'head', 'kernel'
_HEAD_BIAS = 'params', 'head', 'bias'


def describe(leaf: Any) -> tuple[Shape, str]:
  """Returns the shape and dtype of an array or a PyTorch tensor."""
  if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
    raise InputError(
      'A state dict maps names to arrays, but this one contains an object of'
      f' type {type(leaf).__name__}: give the inner state dict, such as'
      " checkpoint['state_dict']."
    )
  return tuple(leaf.shape), str(leaf.dtype).removeprefix('torch.')


def image_channels(variables: Mapping[str, Any]) -> int:
  """Returns the number of image channels of a network."""
  params = variables['params']
  stem = params.get('stem_conv') or params['stem_conv1']
  return stem['kernel'].shape[2]


def count_classes(variables: Mapping[str, Any]) -> int:
  """Returns the number of classes of a network, 0 if it has no head."""
  head = variables['params'].get('head')
  return len(head['bias']) if head else 0


def flatten(variables: Mapping[str, Any]) -> dict[Path, Any]:
  """Returns the parameters and statistics by path."""
  return traverse_util.flatten_dict(
    {part: variables.get(part, {}) for part in ('params', 'batch_stats')}
  )


def expected_shapes(
  name: str,
  tensors: Tensors,
  overrides: Mapping[str, Any],
  layout_of: Callable[[Shapes], Layout],
) -> dict[Path, Shape]:
  """Returns the shape of each variable of a network by path.

  Image channels, and classes unless overridden, are those of the tensors.
  """
  model = create_model(name, **overrides)
  # The shapes do not depend on the size of the images.
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  init = functools.partial(model.init, train=False)
  variables = jax.eval_shape(init, jax.random.key(0), images)
  shapes = {path: leaf.shape for path, leaf in flatten(variables).items()}
  keys = {tensor.path: (k, tensor) for k, tensor in layout_of(shapes).items()}

  def size(path: Path, axis: int) -> int | None:
    """Returns the size of an axis of a variable in the source."""
    key, tensor = keys[path]
    shape, _ = tensors.get(key, ((), ''))
    dim = tensor.axes.index(axis)
    return shape[dim] if dim < len(shape) else None

  num_classes = size(_HEAD_BIAS, 0)
  if num_classes and 'num_classes' not in overrides:
    shapes[_HEAD] = (*shapes[_HEAD][:-1], num_classes)
    shapes[_HEAD_BIAS] = (num_classes,)
  for name in ('stem_conv', 'stem_conv1'):
    path = ('params', name, 'kernel')
    if path in shapes and size(path, 2) == 1:  # Grey instead of RGB.
      shapes[path] = (*shapes[path][:2], 1, shapes[path][3])
  return shapes


def check_fit(
  where: str,
  tensors: Tensors,
  wanted: Mapping[str, Shape],
  *,
  optional: Collection[str] = (),
) -> None:
  """Raises InputError for the first tensor that does not fit.

  Args:
    where: name of the source of the tensors, for messages.
    tensors: shapes and dtypes of the tensors.
    wanted: shapes of the required floating-point tensors by name.
    optional: names of integer scalars that are allowed.
  """
  for key, shape in wanted.items():
    if key not in tensors:
      extra = [k for k in tensors if k not in wanted and k not in optional]
      hint = nearest(key, extra) if extra else ''
      raise InputError(f'{where} has no tensor {key!r}.{hint}')
    there, dtype = tensors[key]
    if there != shape:
      raise InputError(
        f'{key!r} in {where} has the shape {list(there)}; the network has'
        f' {list(shape)}.'
      )
    if dtype not in _FLOATS:
      raise InputError(
        f'{key!r} in {where} is {dtype}, not one of {", ".join(_FLOATS)}.'
      )
  for key, (shape, dtype) in tensors.items():
    if key in optional and (shape or not dtype.lower().startswith(('i', 'u'))):
      raise InputError(
        f'{key!r} in {where} is {dtype}{list(shape)}, not one integer.'
      )
    if key not in wanted and key not in optional:
      raise InputError(f'{where} has {key!r}, but the network does not.')
