"""Names of the ResNet50, ResNet101 and ResNet152 of `keras.applications`.

They are our `resnet*_v1`, but convolutions have biases, epsilon is larger, and
images are BGR. Reading folds this into the variables; nothing is written.
"""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from resnet.data.sources import imagenet_names
from resnet.weights.metadata import Preprocessing
from resnet.weights.naming import layout as base
from resnet.weights.naming.layout import Read, Tensors

_BLOCK = r'conv(\d)_block\d+'
_LAYERS = {
  'stem_conv': 'conv1_conv',
  'stem_bn': 'conv1_bn',
  'shortcut_conv': '0_conv',
  'shortcut_bn': '0_bn',
  **{f'{kind}{k}': f'{k}_{kind}' for kind in ('conv', 'bn') for k in (1, 2, 3)},
  'head': 'predictions',
}
_NORM = {'scale': 'gamma', 'bias': 'beta'}
_NORM |= {'mean': 'moving_mean', 'var': 'moving_variance'}
_NETWORKS: Mapping[tuple[int, ...], str] = {
  (3, 4, 6, 3): 'resnet50_v1',
  (3, 4, 23, 3): 'resnet101_v1',
  (3, 8, 36, 3): 'resnet152_v1',
}


def _layout(shapes: base.Shapes) -> base.Layout:
  layout = {}
  for path, shape in shapes.items():
    layer = '_'.join(_LAYERS.get(module, module) for module in path[1:-1])
    layer = re.sub(r'stage(\d+)', lambda m: f'conv{int(m[1]) + 1}', layer)
    leaf = _NORM[path[-1]] if layer.endswith('_bn') else path[-1]
    # The channels of images are BGR.
    orders = {2: np.arange(shape[2])[::-1]} if layer == 'conv1_conv' else {}
    axes = tuple(range(len(shape)))
    layout[f'{layer}/{leaf}'] = base.TensorLayout(path, shape, axes, orders)
  return layout


def _fold(tensors: Tensors, read: Read) -> base.Opened:
  """Folds biases into the means of batch norms, and epsilon into variances."""
  biases = {}
  for key, shape_and_dtype in tensors.items():
    mean = key.replace('_conv/bias', '_bn/moving_mean')
    # Other biases stay, and are refused as unknown tensors.
    if mean != key and tensors.get(mean) == shape_and_dtype:
      biases[mean] = key

  def read_folded(key: str) -> np.ndarray:
    array = read(key)
    # In float64, so that only the conversion to float32 rounds.
    if key in biases:
      return array.astype(np.float64) - read(biases[key])
    if key.endswith('_bn/moving_variance'):
      # Keras adds 1.001e-5 to it, our batch norm 1e-5.
      return array.astype(np.float64) + 1e-8
    return array

  folded = biases.values()
  kept = {key: x for key, x in tensors.items() if key not in folded}
  return kept, read_folded, _identify(tensors)


def _identify(tensors: Tensors) -> Mapping[str, Any]:
  """Returns the network, its preprocessing, and ImageNet's 1,000 classes."""
  matches = (re.match(_BLOCK, key) for key in tensors)
  stages = [stage for _, stage in {m.group(0, 1) for m in matches if m}]
  # V2 nets have the same blocks, but no batch norm in the stem.
  is_v1 = 'conv1_bn/gamma' in tensors
  name = _NETWORKS.get(tuple(map(stages.count, '2345'))) if is_v1 else None
  shape, _ = tensors.get('predictions/bias', ((), ''))
  names = imagenet_names.class_ids() if shape == (1000,) else None
  return {
    'model': name,
    'preprocessing': Preprocessing(
      mean=(123.68 / 255, 116.779 / 255, 103.939 / 255),
      std=(1 / 255,) * 3,
      image_size=224,
      crop_share=0.875,
      interpolation='bilinear',
    ),
    'class_names': names,
  }


KERAS = base.Naming(
  name='keras',
  is_in=lambda keys: 'conv1_conv/kernel' in keys,
  layout=_layout,
  block=_BLOCK,
  adapt=_fold,
  note="biases and Keras' epsilon are folded into the batch norms, BGR into the"
  " first kernel; preprocessing is assumed to be Keras' mode 'caffe'",
)
