"""Names and layouts of the state dicts of torchvision and timm.

One of our variables has a path such as ('params', 'stage1_block2', 'conv1',
'kernel'); its PyTorch tensor has a key such as 'layer1.1.conv1.weight'. Both
libraries use the same names for the same network; networks that only timm has
(D, SE, RS, v2) use timm's names. In timm's v2 nets, the first batch norm is not
in the stem but in the first block, after the max-pooling: see `NAMINGS`.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import numpy as np

Path = tuple[str, ...]

# The two differ only in the name of the stem's batch norm in v2 networks:
# 'stem.norm' with 'torchvision', `TIMM_FIRST_NORM` with 'timm'.
NAMINGS = ('torchvision', 'timm')
COUNTER = 'num_batches_tracked'

# Map patterns of our module names to PyTorch's: v1 here, v2 below.
_MODULES = {
  r'stem_conv': 'conv1',
  r'stem_bn': 'bn1',
  r'stem_conv1': 'conv1.0',
  r'stem_bn1': 'conv1.1',
  r'stem_conv2': 'conv1.3',
  r'stem_bn2': 'conv1.4',
  r'stem_conv3': 'conv1.6',
  r'stem_bn3': 'bn1',
  r'stem_conv4': 'maxpool.0',
  r'stem_bn4': 'maxpool.1',
  r'(conv\d|bn\d)': r'\1',
  r'se_reduce': 'se.fc1',
  r'se_expand': 'se.fc2',
  r'head': 'fc',
  # Names of our own for `LectureResNet`, which PyTorch libraries lack.
  r'stage(\d)_conv': r'layer\1.conv',
}
_V2_MODULES = {
  r'stem_conv': 'stem.conv',
  r'stem_bn': 'stem.norm',
  r'(conv\d)': r'\1',
  r'bn(\d)': r'norm\1',
  r'shortcut_conv': 'downsample.conv',
  r'head_bn': 'norm',
  r'head': 'head.fc',
}
TIMM_FIRST_NORM = 'stages.0.blocks.0.norm1'
# Dense layers of ours that are 1x1 convolutions in timm.
_DENSE_AS_CONV = {'se.fc1', 'se.fc2', 'head.fc'}
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """The layout of one tensor of a state dict.

  Attributes:
    path: path of our variable.
    shape: shape of the tensor in PyTorch.
    axes: axes of our variable in the order of PyTorch's.
  """

  path: Path
  shape: tuple[int, ...]
  axes: tuple[int, ...]

  def to_torch(self, array: Any) -> np.ndarray:
    """Returns a copy of our array in PyTorch's layout."""
    array = np.asarray(array).transpose(self.axes)
    return np.array(array, order='C').reshape(self.shape)

  def from_torch(self, array: np.ndarray) -> np.ndarray:
    """Returns a copy of PyTorch's array in our layout."""
    # Drop the spatial dims of a dense layer that is a convolution in PyTorch.
    array = array.reshape(self.shape[: len(self.axes)])
    return np.array(array.transpose(np.argsort(self.axes)), order='C')


def state_dict_layout(
  shapes: Mapping[Path, tuple[int, ...]], naming: str
) -> dict[str, Tensor]:
  """Returns the layout of a network's tensors by key, without the counters."""
  modules = {path[1] for path in shapes}
  is_v2, is_d = 'head_bn' in modules, 'stem_conv1' in modules
  names = dict(_V2_MODULES if is_v2 else _MODULES)
  if is_v2 and naming == 'timm':
    names['stem_bn'] = TIMM_FIRST_NORM
  if not is_v2:
    # With D, layer 0 of timm's shortcut is the average pool, or an identity.
    names['shortcut_conv'] = f'downsample.{0 + is_d}'
    names['shortcut_bn'] = f'downsample.{1 + is_d}'
  layout = {}
  for path, shape in shapes.items():
    keys = []
    for module in path[1:-1]:
      if match := re.fullmatch(r'stage(\d+)_block(\d+)', module):
        i, j = (int(group) - 1 for group in match.groups())
        keys.append(f'stages.{i}.blocks.{j}' if is_v2 else f'layer{i + 1}.{j}')
      else:
        keys.append(_rename(module, names))
    key = '.'.join([*keys, _LEAVES[path[-1]]])
    num_dims = len(shape)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(num_dims, tuple(range(num_dims)))
    theirs = tuple(shape[axis] for axis in axes)
    if keys[-1] in _DENSE_AS_CONV and num_dims == 2:
      theirs = (*theirs, 1, 1)
    layout[key] = Tensor(path, theirs, axes)
  return layout


def _rename(module: str, names: dict[str, str]) -> str:
  for pattern, name in names.items():
    if match := re.fullmatch(pattern, module):
      return match.expand(name)
  raise ValueError(f'no PyTorch name for {module!r}')


def counter_keys(layout: dict[str, Tensor]) -> dict[str, Path]:
  """Returns the path of each batch norm by the key of its counter."""
  return {
    f'{key.removesuffix(".running_mean")}.{COUNTER}': tensor.path[1:-1]
    for key, tensor in layout.items()
    if key.endswith('.running_mean')
  }
