"""The names and layouts of PyTorch: torchvision's and timm's state dicts.

A variable of ours is a path such as ('params', 'stage1_block2', 'conv1',
'kernel'), one of theirs a key such as 'layer1.1.conv1.weight'. Both libraries
use the same names where they have the same network; what only timm has (D, SE,
RS, v2) is named as there. In v2 nets timm has the first batch norm not in the
stem but in the first block, after the max-pool: see `NAMINGS`.
"""

from collections.abc import Iterable
import dataclasses
import re
from typing import Any

import numpy as np

Path = tuple[str, ...]

# 'torchvision': its names, timm's where it has no such layer, and 'stem.norm'
# for the stem's batch norm of v2; 'timm': timm's names throughout.
NAMINGS = ('torchvision', 'timm')
COUNTER = 'num_batches_tracked'

# Ours to theirs, by pattern; all of v1 first.
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
  # The lecture's net, which nobody else has.
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
# Dense layers that timm writes as 1x1 convolutions.
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
  """One tensor of a state dict, and which variable of ours it is.

  Attributes:
    path: path of the variable.
    shape: shape of the tensor in PyTorch.
    axes: our axes in the order of PyTorch's.
    ours: shape of the variable.
  """

  path: Path
  shape: tuple[int, ...]
  axes: tuple[int, ...]
  ours: tuple[int, ...]

  def to_torch(self, array: Any) -> np.ndarray:
    """Returns a copy of our array, laid out as PyTorch's."""
    array = np.asarray(array).transpose(self.axes)
    return np.array(array, order='C').reshape(self.shape)

  def from_torch(self, array: np.ndarray) -> np.ndarray:
    """Returns a copy of PyTorch's array, laid out as ours."""
    squeezed = array.reshape([self.ours[axis] for axis in self.axes])
    return np.array(squeezed.transpose(np.argsort(self.axes)), order='C')


def state_dict_layout(
  shapes: Iterable[tuple[Path, tuple[int, ...]]], naming: str
) -> dict[str, Tensor]:
  """Returns the tensors of a network by key, without the counters."""
  shapes = list(shapes)
  modules = {path[1] for path, _ in shapes}
  is_v2, is_d = 'head_bn' in modules, 'stem_conv1' in modules
  names = dict(_V2_MODULES if is_v2 else _MODULES)
  if is_v2 and naming == 'timm':
    names['stem_bn'] = TIMM_FIRST_NORM
  if not is_v2:
    # The average pool of D is the first layer there, even where it is none.
    names['shortcut_conv'] = f'downsample.{0 + is_d}'
    names['shortcut_bn'] = f'downsample.{1 + is_d}'
  block = r'stages.{}.blocks.{}' if is_v2 else r'layer{}.{}'
  first_stage = 0 if is_v2 else 1
  layout = {}
  for path, shape in shapes:
    keys = []
    for module in path[1:-1]:
      if match := re.fullmatch(r'stage(\d+)_block(\d+)', module):
        stage, number = (int(group) - 1 for group in match.groups())
        keys.append(block.format(stage + first_stage, number))
      else:
        keys.append(_rename(module, names))
    key = '.'.join([*keys, _LEAVES[path[-1]]])
    num_dims = len(shape)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(num_dims, tuple(range(num_dims)))
    theirs = tuple(shape[axis] for axis in axes)
    if keys[-1] in _DENSE_AS_CONV and num_dims == 2:
      theirs = (*theirs, 1, 1)
    layout[key] = Tensor(path, theirs, axes, shape)
  return layout


def _rename(module: str, names: dict[str, str]) -> str:
  found = ((re.fullmatch(x, module), name) for x, name in names.items())
  key = next((match.expand(name) for match, name in found if match), None)
  if key is None:
    raise ValueError(f'no PyTorch name for {module!r}')
  return key


def counter_keys(layout: dict[str, Tensor]) -> dict[str, Path]:
  """Returns the key of each batch norm's counter, and the path of the norm."""
  return {
    f'{key.removesuffix(".running_mean")}.{COUNTER}': tensor.path[1:-1]
    for key, tensor in layout.items()
    if key.endswith('.running_mean')
  }
