"""Names of Flax's ImageNet example and of n2cholas' jax-resnet."""

from resnet.weights.naming.layout import Layout, Naming, Shapes, rename


def _flax(shapes: Shapes) -> Layout:
  is_basic = not any('conv3' in path for path in shapes)
  modules = {
    'stem_conv': 'conv_init',
    'stem_bn': 'bn_init',
    **{f'conv{k}': f'Conv_{k - 1}' for k in (1, 2, 3)},
    **{f'bn{k}': f'BatchNorm_{k - 1}' for k in (1, 2, 3)},
    'shortcut_conv': 'conv_proj',
    'shortcut_bn': 'norm_proj',
    'head': 'Dense_0',
  }
  block = ('' if is_basic else 'Bottleneck') + 'ResNetBlock_{number}'
  return rename(shapes, modules, block, 'flax', is_torch=False)


def _jax_resnet(shapes: Shapes) -> Layout:
  is_deep = ('params', 'stem_conv1', 'kernel') in shapes
  shortcut = f'ResNet{"D" * is_deep}SkipConnection_0/ConvBlock_0'
  # Before the blocks are the stem and a max-pooling, after them an average.
  num_blocks = len({path[1] for path in shapes if '_block' in path[1]})
  modules = {'head': f'layers_{num_blocks + 3}'}
  for kind, module in (('conv', 'Conv_0'), ('bn', 'BatchNorm_0')):
    modules[f'stem_{kind}'] = f'layers_0/ConvBlock_0/{module}'
    modules[f'shortcut_{kind}'] = f'{shortcut}/{module}'
    for k in (1, 2, 3):
      modules[f'{kind}{k}'] = f'ConvBlock_{k - 1}/{module}'
      modules[f'stem_{kind}{k}'] = f'layers_0/ConvBlock_{k - 1}/{module}'
  block, library = 'layers_{number}', 'jax-resnet'
  return rename(shapes, modules, block, library, first=2, is_torch=False)


FLAX = Naming(
  name='flax',
  is_in=lambda keys: 'params/conv_init/kernel' in keys,
  layout=_flax,
  models=r'resnet\d+',
  block=r'ResNetBlock_\d+',
  note="Flax's example pads even sizes on one side only: logits are the same at"
  ' image sizes of 32k + 1, such as 225; fine-tune before use at other sizes.',
)
JAX_RESNET = Naming(
  name='jax-resnet',
  is_in=lambda keys: 'params/layers_0/ConvBlock_0/Conv_0/kernel' in keys,
  layout=_jax_resnet,
  models=r'((wide_)?resnet|resnext)\d+(d|_2|_32x\dd)?',
  block=r'layers_(?!0/)\d+/ConvBlock',
)
