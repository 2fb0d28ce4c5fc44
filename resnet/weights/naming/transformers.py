"""Names of `ResNetForImageClassification` of Hugging Face's transformers."""

from resnet.weights.naming.layout import Naming, rename

_STEM = 'resnet.embedder.embedder'
_MODULES = {
  'stem_conv': f'{_STEM}.convolution',
  'stem_bn': f'{_STEM}.normalization',
  **{f'conv{k}': f'layer.{k - 1}.convolution' for k in (1, 2, 3)},
  **{f'bn{k}': f'layer.{k - 1}.normalization' for k in (1, 2, 3)},
  'shortcut_conv': 'shortcut.convolution',
  'shortcut_bn': 'shortcut.normalization',
  'head': 'classifier.1',
}
_BLOCK = 'resnet.encoder.stages.{stage}.layers.{block}'

TRANSFORMERS = Naming(
  name='transformers',
  is_in=lambda keys: f'{_STEM}.convolution.weight' in keys,
  layout=lambda shapes: rename(shapes, _MODULES, _BLOCK, 'transformers'),
  block=r'stages\.\d+\.layers\.\d+',
)
