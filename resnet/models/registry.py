"""Every network by name: the rows of the papers' tables."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn

from resnet.errors import InputError, nearest
from resnet.models import layers
from resnet.models.blocks import (
  BasicBlock,
  BottleneckBlock,
  PreActBasicBlock,
  PreActBottleneckBlock,
)
from resnet.models.convolution import CONV_BACKENDS
from resnet.models.lecture import LectureResNet
from resnet.models.resnet import ResNet
from resnet.models.shortcuts import SHORTCUTS

# Blocks of each stage: He et al. 2016, Table 1; 200 of "Identity mappings".
_IMAGENET = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


def _imagenet(
  depth: int, block_cls: Callable[..., nn.Module] | None = None, **fields: Any
) -> functools.partial[ResNet]:
  """A column of Table 1; bottlenecks stride in the 3x3 (v1.5)."""
  return functools.partial(
    ResNet,
    stage_sizes=_IMAGENET[depth],
    block_cls=block_cls or (BasicBlock if depth < 50 else BottleneckBlock),
    num_classes=1000,
    **fields,
  )


def _bottleneck(**fields: Any) -> Callable[..., nn.Module]:
  return functools.partial(BottleneckBlock, **fields)


def _cifar(
  depth: int,
  block_cls: Callable[..., nn.Module] = BasicBlock,
  *,
  layers_per_block: int = 2,
  **fields: Any,
) -> functools.partial[ResNet]:
  """He et al. 2016, section 4.2: three stages of 16, 32, 64, option A.

  Two layers are the stem and the head: depth 6n + 2, or 9n + 2 of bottlenecks.
  """
  defaults = {
    'stage_sizes': ((depth - 2) // (3 * layers_per_block),) * 3,
    'num_classes': 10,
    'num_filters': 16,
    'stem': layers.cifar_stem,
    'stem_pool': None,
    'shortcut': 'A',
    # A thousand layers take too long to compile one by one.
    'scan_blocks': depth > 1000,
  }
  return functools.partial(
    ResNet, block_cls=block_cls, **{**defaults, **fields}
  )


_MODELS: dict[str, Any] = {
  **{f'resnet{depth}': _imagenet(depth) for depth in _IMAGENET},
  # The paper's own bottlenecks stride in the first 1x1 (v1).
  **{
    f'resnet{depth}_v1': _imagenet(depth, _bottleneck(stride_in_1x1=True))
    for depth in (50, 101, 152)
  },
  # ResNet-D of He et al. 2019, "Bag of tricks", section 4.
  **{
    f'resnet{depth}d': _imagenet(depth, stem=layers.deep_stem, shortcut='D')
    for depth in (18, 34, 50, 101, 152)
  },
  # v2: He et al. 2016, "Identity mappings".
  **{
    f'preact_resnet{depth}': _imagenet(
      depth, PreActBasicBlock if depth < 50 else PreActBottleneckBlock
    )
    for depth in _IMAGENET
  },
  # Xie et al. 2017, "Aggregated residual transformations".
  'resnext50_32x4d': _imagenet(50, _bottleneck(groups=32, width_per_group=4)),
  'resnext101_32x8d': _imagenet(101, _bottleneck(groups=32, width_per_group=8)),
  # Zagoruyko and Komodakis 2016, "Wide residual networks", section 3.4.
  **{
    f'wide_resnet{depth}_2': _imagenet(depth, _bottleneck(width_per_group=128))
    for depth in (50, 101)
  },
  # Hu et al. 2018, "Squeeze-and-excitation networks".
  'seresnet50': _imagenet(50, _bottleneck(se_reduction=16)),
  # Zhang 2019, "Making convolutional networks shift-invariant again", as timm.
  **{
    f'resnetblur{depth}': _imagenet(
      depth,
      functools.partial(block_cls, blur=True),
      stem_pool=layers.stem_blur_pool,
    )
    for depth, block_cls in ((18, BasicBlock), (50, BottleneckBlock))
  },
  # Bello et al. 2021, "Revisiting ResNets", section 4.1.
  'resnetrs50': _imagenet(
    50,
    _bottleneck(se_reduction=4),
    stem=layers.rs_stem,
    stem_pool=None,
    shortcut='D',
  ),
  # He et al. 2016, section 3.3: the same nets without shortcuts.
  **{f'plain{depth}': _imagenet(depth, shortcut='none') for depth in (18, 34)},
  **{
    f'cifar_resnet{depth}': _cifar(depth)
    for depth in (8, 20, 32, 44, 56, 110, 1202)
  },
  **{
    f'cifar_plain{depth}': _cifar(depth, shortcut='none')
    for depth in (20, 32, 44, 56, 110)
  },
  # As many bottlenecks as cifar_resnet20, 56 and 110 have basic blocks, at
  # nearly their cost; the paper has none, but see its Figure 5.
  **{
    f'cifar_bottleneck_resnet{depth}': _cifar(
      depth, _bottleneck(stride_in_1x1=True), layers_per_block=3
    )
    for depth in (29, 83, 164)
  },
  # "Identity mappings", section 3 (110) and 4 (164, 1001: bottlenecks whose
  # shortcuts are projections where the shape changes).
  'cifar_preact_resnet110': _cifar(110, PreActBasicBlock),
  **{
    f'cifar_preact_resnet{depth}': _cifar(
      depth,
      # As in the authors' released code.
      functools.partial(PreActBottleneckBlock, stride_in_1x1=True),
      layers_per_block=3,
      shortcut='B',
    )
    for depth in (164, 1001)
  },
  # Zagoruyko and Komodakis 2016, Table 1: k = 10, n = 4; two of the 28 layers
  # are projections.
  'wrn28_10': _cifar(
    26, PreActBasicBlock, num_filters=160, stem_filters=16, shortcut='B'
  ),
  'lecture_resnet50': functools.partial(LectureResNet, num_classes=1000),
}


def list_models() -> list[str]:
  """Returns the names that `create_model` takes."""
  return list(_MODELS)


def create_model(name: str, **overrides: Any) -> Any:
  """Returns the network `name` as a linen module.

  Args:
    name: one of `list_models()`.
    **overrides: attributes of `ResNet` (or `LectureResNet`), such as
      `num_classes` or `dtype`.

  Raises:
    InputError: there is no such network (the nearest names are listed), or
      no such attribute or shortcut.
  """
  if name not in _MODELS:
    hint = f'{nearest(name, _MODELS)} All names: resnet.models.list_models().'
    raise InputError(f'There is no model {name!r}.{hint}')
  fields = {field.name for field in dataclasses.fields(_MODELS[name].func)}
  fields -= {'parent', 'name'}
  for field in overrides:
    if field not in fields:
      raise InputError(f'{name} has no {field!r}.{nearest(field, fields)}')
  model = _MODELS[name](**overrides)
  if isinstance(model, ResNet):
    _check(name, model)
  return model


def _check(name: str, model: ResNet) -> None:
  """Raises InputError for fields that have other values than they may."""

  def check(field: str, is_good: bool, why: str) -> None:
    if not is_good:
      raise InputError(f'model.{field}={getattr(model, field)!r} {why}.')

  known = ', '.join(SHORTCUTS)
  check('shortcut', model.shortcut in SHORTCUTS, f'is none of {known}')
  backends, known = (None, *CONV_BACKENDS), ', '.join(CONV_BACKENDS)
  check('conv_backend', model.conv_backend in backends, f'is none of {known}')
  num = len(model.stage_sizes)
  text = f'is not in 0 .. {num}, the stages of {name}'
  check('frozen_stages', 0 <= model.frozen_stages <= num, text)
  check('drop_path', 0 <= model.drop_path < 1, 'is not in [0, 1)')
  check('dropout', 0 <= model.dropout < 1, 'is not in [0, 1)')
  if model.shortcut == 'none':
    text = f'leaves nothing of a block of {name}, which has no shortcut'
    check('drop_path', not model.drop_path, text)
    text = f'gives zeros and no gradient in {name} without shortcuts'
    check('zero_init_last_scale', not model.zero_init_last_scale, text)
  if model.scan_blocks:
    text = f'is not for {name}, whose blocks are compiled as one'
    check('drop_path', not model.drop_path, text)
