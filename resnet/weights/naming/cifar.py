"""Names of akamaster's pytorch_resnet_cifar10, the paper's CIFAR networks.

Where the shape changes, our shortcut of option A appends channels of zeros.
akamaster's puts half of them before the channels, so that its network is ours
with the channels of the residual stream in another order.
"""

import dataclasses
import re

import numpy as np

from resnet.weights.naming.layout import Layout, Naming, Shapes, lacking, rename

_MODULES = {
  'stem_conv': 'conv1',
  'stem_bn': 'bn1',
  **{f'{kind}{k}': f'{kind}{k}' for kind in ('conv', 'bn') for k in (1, 2)},
  'shortcut_conv': 'shortcut.0',
  'shortcut_bn': 'shortcut.1',
  'head': 'linear',
}


def _layout(shapes: Shapes) -> Layout:
  layout = rename(shapes, _MODULES, 'layer{layer}.{block}', 'akamaster')
  orders = _stage_orders(shapes)
  stem = shapes['params', 'stem_conv', 'kernel']
  if (stem[0], stem[3], len(orders)) != (3, 16, 4):
    raise lacking('akamaster', 'network of these shapes')
  if any('shortcut_conv' in path for path in shapes):
    return layout  # Option B pads nothing.
  for key, tensor in layout.items():
    _, module, layer, *_ = tensor.path
    changes = {0: orders[-1]} if (module, layer) == ('head', 'kernel') else {}
    if module.startswith('stage'):
      stage, block = map(int, re.findall(r'\d+', module))
      # The first block reads the channels of the stage before.
      changes = {
        'conv1': {2: orders[stage - (block == 1)]},
        'conv2': {3: orders[stage]},
        'bn2': {0: orders[stage]},
      }.get(layer, {})
    layout[key] = dataclasses.replace(tensor, orders=changes)
  return layout


def _stage_orders(shapes: Shapes) -> list[np.ndarray]:
  """Returns akamaster's index of each of our channels, for stem and stages."""
  orders = [np.arange(shapes['params', 'stem_bn', 'scale'][0])]
  while (name := f'stage{len(orders)}_block1') in {path[1] for path in shapes}:
    channels = np.arange(shapes['params', name, 'bn2', 'scale'][0])
    old = orders[-1] + (len(channels) - len(orders[-1])) // 2
    orders.append(np.concatenate([old, np.setdiff1d(channels, old)]))
  return orders


AKAMASTER = Naming(
  name='akamaster',
  is_in=lambda keys: 'linear.weight' in keys,
  layout=_layout,
  models=r'cifar_resnet\d+',
  block=r'layer\d+\.\d+',
)
