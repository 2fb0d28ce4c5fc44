"""The tensors of a library: their names, shapes and order of numbers.

One of our variables has a path such as ('params', 'stage1_block2', 'conv1',
'kernel'); its PyTorch tensor has a key such as 'layer1.1.conv1.weight'.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import re
from typing import Any

from flax import traverse_util
import numpy as np

from resnet.errors import InputError

Path = tuple[str, ...]
Shape = tuple[int, ...]
Shapes = Mapping[Path, Shape]
# Shape and dtype by key of a state dict, and (key) -> array.
Tensors = Mapping[str, tuple[Shape, str]]
Read = Callable[[str], np.ndarray]
# Tensors, their reader, and a file's header or fields of `Metadata`.
Opened = tuple[Tensors, Read, Mapping[str, Any]]

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
    models: regular expression of the networks that the library can have;
      others may have the same tensors, but compute something else.
    check: raises InputError if the library computes other logits with these
      variables by path.
    adapt: (tensors, reader) -> those of the tensors that `layout` names, for
      libraries that have others besides, and the fields of `Metadata` that all
      of the library's networks share or the tensors show.
    note: how the library's networks differ from ours besides names; shown to
      users.
  """

  name: str
  is_in: Callable[[Collection[str]], bool]
  layout: Callable[[Shapes], Layout]
  block: str
  models: str = '.*'
  check: Callable[[Mapping[Path, Any]], None] = lambda _: None
  adapt: Callable[[Tensors, Read], Opened] = lambda *same: (*same, {})
  note: str = ''

  def has(self, name: str) -> bool:
    """Returns whether the library can have a network."""
    return re.fullmatch(self.models, name) is not None

  def check_model(self, name: str) -> None:
    """Raises InputError if the library cannot have a network."""
    if not self.has(name):
      raise lacking(self.name, f'network {name!r}')


def rename(
  shapes: Shapes,
  modules: Mapping[str, str],
  block: str,
  library: str,
  *,
  first: int = 0,
  is_torch: bool = True,
) -> Layout:
  """Returns a library's tensors by key for our variables.

  `modules` has the library's name of each of our modules. `block` is its name
  of a block, a format string with {stage} and {block}, counted from 0, {layer},
  the stage counted from 1, and {number}, that of the block in the network,
  counted from `first`. `library` is for messages. If not `is_torch`, leaves and
  axes are those of Flax.
  """
  blocks = {path[1] for path in shapes if '_block' in path[1]}
  places = sorted([*map(int, re.findall(r'\d+', name))] for name in blocks)
  names = dict(modules)
  for number, (i, j) in enumerate(places, first):
    fields = {'stage': i - 1, 'layer': i, 'block': j - 1, 'number': number}
    names[f'stage{i}_block{j}'] = block.format_map(fields)
  layout = {}
  for path, shape in shapes.items():
    collection, *inside, leaf = path
    if missing := [module for module in inside if module not in names]:
      raise lacking(library, f'name for {missing[0]!r}')
    parts, axes = [names[module] for module in inside], tuple(range(len(shape)))
    key = '/'.join([collection, *parts, leaf])
    if is_torch:
      key = '.'.join([*parts, _LEAVES[leaf]])
      axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(len(shape), axes)
    layout[key] = TensorLayout(path, tuple(shape[axis] for axis in axes), axes)
  return layout


def lacking(library: str, what: str) -> InputError:
  """Returns the error about a network that a library lacks."""
  return InputError(
    f'{library} has no {what}. To write these weights, use naming torchvision,'
    ' which names all tensors; to read them, choose another --model: `python -m'
    ' resnet.tools.weights inspect SOURCE` lists those that fit.'
  )


def flatten(variables: Mapping[str, Any]) -> dict[Path, Any]:
  """Returns the parameters and statistics by path."""
  return traverse_util.flatten_dict(
    {part: variables.get(part, {}) for part in ('params', 'batch_stats')}
  )


def counter_keys(layout: Layout) -> list[str]:
  """Returns the keys of PyTorch's counts of updates, which we do not use."""
  means = [key for key in layout if key.endswith('.running_mean')]
  return [key.replace('running_mean', 'num_batches_tracked') for key in means]
