"""Names of torchvision and timm.

Both use the same names for the same network; networks that only timm has (D,
SE, RS, v2) use timm's names. In timm's v2 nets, the first batch norm is not in
the stem but in the first block, after the max-pooling: the two namings differ
only in its name, 'stem.norm' with 'torchvision'.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.weights.naming.layout import Layout, Naming, Path, Shapes, rename

# PyTorch's names of our modules: v1 here, v2 below.
_MODULES = {
  'stem_conv': 'conv1',
  'stem_bn': 'bn1',
  'stem_conv1': 'conv1.0',
  'stem_bn1': 'conv1.1',
  'stem_conv2': 'conv1.3',
  'stem_bn2': 'conv1.4',
  'stem_conv3': 'conv1.6',
  'stem_bn3': 'bn1',
  'stem_conv4': 'maxpool.0',
  'stem_bn4': 'maxpool.1',
  **{f'{kind}{k}': f'{kind}{k}' for kind in ('conv', 'bn') for k in (1, 2, 3)},
  'se_reduce': 'se.fc1',
  'se_expand': 'se.fc2',
  'head': 'fc',
  # Names of our own for `LectureResNet`, which PyTorch libraries lack.
  **{f'stage{i}_conv': f'layer{i}.conv' for i in range(1, 10)},
}
_V2_MODULES = {
  'stem_conv': 'stem.conv',
  'stem_bn': 'stem.norm',
  **{f'conv{k}': f'conv{k}' for k in (1, 2, 3)},
  **{f'bn{k}': f'norm{k}' for k in (1, 2, 3)},
  'shortcut_conv': 'downsample.conv',
  'head_bn': 'norm',
  'head': 'head.fc',
}
_FIRST_NORM = 'stages.0.blocks.0.norm1'
# Dense layers of ours that are 1x1 convolutions in timm.
_DENSE_AS_CONV = ('se.fc1.weight', 'se.fc2.weight', 'head.fc.weight')


def _layout(shapes: Shapes, first_norm: str = 'stem.norm') -> Layout:
  modules = {path[1] for path in shapes}
  if 'head_bn' in modules:  # v2.
    names = {**_V2_MODULES, 'stem_bn': first_norm}
    block = 'stages.{stage}.blocks.{block}'
  else:
    # With D, layer 0 of timm's shortcut is the average pool, or an identity.
    first = int('stem_conv1' in modules)
    names = {
      **_MODULES,
      'shortcut_conv': f'downsample.{first}',
      'shortcut_bn': f'downsample.{first + 1}',
    }
    block = 'layer{layer}.{block}'
  layout = rename(shapes, names, block, 'torchvision')
  for key, tensor in layout.items():
    if key.endswith(_DENSE_AS_CONV):
      layout[key] = dataclasses.replace(tensor, shape=(*tensor.shape, 1, 1))
  return layout


def _check_timm(flat: Mapping[Path, Any]) -> None:
  """Raises InputError if timm's v2 net would compute other logits.

  timm pools before the first batch norm, which gives the same result in
  evaluation unless a scale is negative.
  """
  if ('params', 'head_bn', 'scale') not in flat:
    return
  if np.any(np.asarray(flat['params', 'stem_bn', 'scale']) < 0):
    raise InputError(
      f"'{_FIRST_NORM}.weight' has numbers below zero: timm's v2 net, which"
      ' pools before that batch norm, computes other logits.'
    )


TORCHVISION = Naming(
  name='torchvision',
  # Errors about unknown tensors name those that torchvision would have.
  is_in=lambda _: True,
  layout=_layout,
  block=r'(stages\.\d+\.blocks|layer\d+)\.\d+',
)
TIMM = dataclasses.replace(
  TORCHVISION,
  name='timm',
  is_in=lambda keys: f'{_FIRST_NORM}.weight' in keys,
  layout=lambda shapes: _layout(shapes, _FIRST_NORM),
  # In v2 nets of basic blocks, timm does not activate the first shortcut.
  models=r'(wide_|se)?resne(t|xt|tblur|trs)\d+(d|_2|_32x\d+d)?'
  r'|preact_resnet(50|101|152)',
  check=_check_timm,
)
