"""The tensors of a library: their names, shapes and order of numbers.

One of our variables has a path such as ('params', 'stage1_block2', 'conv1',
'kernel'); its PyTorch tensor has a key such as 'layer1.1.conv1.weight'.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.weights.metadata import Preprocessing

Path = tuple[str, ...]
Shape = tuple[int, ...]
Shapes = Mapping[Path, Shape]
# Shape and dtype by key of a state dict, and its reader.
Tensors = Mapping[str, tuple[Shape, str]]
Read = Callable[[list[str]], dict[str, np.ndarray]]

COUNTER = 'num_batches_tracked'
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


@dataclasses.dataclass(frozen=True)
class TensorLayout:
  """The layout of one tensor of a state dict.

  Attributes:
    path: path of our variable.
    shape: shape of the stored tensor.
    axes: axes of our variable in the stored order.
    orders: the stored index of each of our indices, by axis of our variable,
      for axes whose order differs.
  """

  path: Path
  shape: Shape
  axes: tuple[int, ...]
  orders: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)

  def to_stored(self, array: Any) -> np.ndarray:
    """Returns a copy of our array in the library's layout."""
    for axis, order in self.orders.items():
      array = np.take(array, np.argsort(order), axis)
    array = np.asarray(array).transpose(self.axes)
    return np.array(array, order='C').reshape(self.shape)

  def from_stored(self, array: np.ndarray) -> np.ndarray:
    """Returns a copy of the library's array in our layout."""
    # Drop the spatial dims of a dense layer that is a convolution in PyTorch.
    array = array.reshape(self.shape[: len(self.axes)])
    array = array.transpose(np.argsort(self.axes))
    for axis, order in self.orders.items():
      array = np.take(array, order, axis)
    return np.array(array, order='C')


Layout = dict[str, TensorLayout]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
  """The tensor names and layouts of a library.

  Attributes:
    name: name of the library or of its author.
    is_in: (keys) -> whether tensors with these keys are the library's.
    layout: (shapes of variables by path) -> tensors by key, without the
      counters; raises InputError if the library has no such network.
    block: regular expression that finds the block in a key.
    check: raises InputError if the library computes other logits with these
      variables by path.
    adapt: (shapes and dtypes by key, reader) -> those of the tensors that
      `layout` names, for libraries that have others besides.
    identify: (shapes and dtypes by key) -> the values of fields of `Metadata`
      that these show, such as 'model'.
    note: how the library's networks differ from ours besides names; shown to
      users.
    preprocessing: preprocessing of the library's networks; None if they differ
      in it.
  """

  name: str
  is_in: Callable[[Collection[str]], bool]
  layout: Callable[[Shapes], Layout]
  block: str
  check: Callable[[Mapping[Path, Any]], None] = lambda _: None
  adapt: Callable[[Tensors, Read], tuple[Tensors, Read]] = lambda *same: same
  identify: Callable[[Tensors], Mapping[str, Any]] = lambda _: {}
  note: str = ''
  preprocessing: Preprocessing | None = None


def rename(
  shapes: Shapes, modules: Mapping[str, str], block: str, library: str
) -> Layout:
  """Returns PyTorch's tensors by key for our variables.

  Args:
    shapes: shapes of our variables by path.
    modules: PyTorch's name of each of our modules.
    block: PyTorch's name of a block: a format string with {stage} and {block},
      counted from 0, and {layer}, the stage counted from 1.
    library: name of the library, for messages.
  """
  layout = {}
  for path, shape in shapes.items():
    names = []
    for module in path[1:-1]:
      if match := re.fullmatch(r'stage(\d+)_block(\d+)', module):
        i, j = map(int, match.groups())
        names.append(block.format(stage=i - 1, layer=i, block=j - 1))
      elif module in modules:
        names.append(modules[module])
      else:
        raise lacking(library, f'name for {"/".join(path)!r}')
    key = '.'.join([*names, _LEAVES[path[-1]]])
    num_dims = len(shape)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(num_dims, tuple(range(num_dims)))
    layout[key] = TensorLayout(path, tuple(shape[axis] for axis in axes), axes)
  return layout


def lacking(library: str, what: str) -> InputError:
  """Returns the error about a network that a library lacks."""
  return InputError(
    f'{library} has no {what}. To write these weights, use naming torchvision,'
    ' which names all tensors; to read them, choose another --model: `python -m'
    ' resnet.tools.weights inspect SOURCE` lists those that fit.'
  )


def counter_keys(layout: Layout) -> dict[str, Path]:
  """Returns the path of each batch norm by the key of its counter."""
  return {
    f'{key.removesuffix(".running_mean")}.{COUNTER}': tensor.path[1:-1]
    for key, tensor in layout.items()
    if key.endswith('.running_mean')
  }
