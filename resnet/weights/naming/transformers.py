"""Names of `ResNetForImageClassification` of Hugging Face's transformers."""

from resnet.weights.naming import layout as base

_STEM = 'resnet.embedder.embedder'
_BARE = 'embedder.embedder.convolution.weight'
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


def _layout(shapes: base.Shapes) -> base.Layout:
  layout = base.rename(shapes, _MODULES, _BLOCK, 'transformers')
  stem = shapes['params', 'stem_conv', 'kernel']
  projected = {p[1].split('_')[1] for p in shapes if p[2] == 'shortcut_conv'}
  # Groups and other widths change these ratios of outputs to inputs.
  kernels = [(p[2], s) for p, s in shapes.items() if p[2] in ('conv2', 'conv3')]
  ratios = {(name, shape[3] / shape[2]) for name, shape in kernels}
  is_known = stem[0] == 7 and ratios <= {('conv2', 1), ('conv3', 4)}
  if not is_known or projected != {'block1'}:
    raise base.lacking('transformers', 'network of these shapes')
  return layout


def _adapt(tensors: base.Tensors, read: base.Read) -> base.Opened:
  """Adds the prefix that `ResNetModel`, the backbone alone, leaves out."""
  prefix = 'resnet.' if _BARE in tensors else ''
  tensors = {prefix + key: value for key, value in tensors.items()}
  return tensors, lambda key: read(key.removeprefix(prefix)), {}


TRANSFORMERS = base.Naming(
  name='transformers',
  is_in=lambda keys: f'resnet.{_BARE}' in keys or _BARE in keys,
  layout=_layout,
  adapt=_adapt,
  models=r'resnet(18|34|50|101|152)(_v1)?',
  block=r'stages\.\d+\.layers\.\d+',
)
