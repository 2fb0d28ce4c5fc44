"""All networks by name, as in the papers' tables."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from resnet.errors import InputError, nearest
from resnet.models import blocks, layers, pooling
from resnet.models.convolution import CONV_BACKENDS
from resnet.models.lecture import LectureResNet
from resnet.models.resnet import ResNet
from resnet.models.shortcuts import SHORTCUTS

_V1 = {'stride_in_1x1': True}
# Blocks per stage by depth: He et al. 2016, Table 1, and, for 200 layers,
# "Identity mappings".
_IMAGENET = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
}


def _imagenet(
  depth: int, block_cls: type[blocks.Block] | None = None, **fields: Any
) -> functools.partial[ResNet]:
  """Returns a net of Table 1; bottlenecks have the stride in the 3x3 (v1.5)."""
  return functools.partial(
    ResNet,
    stage_sizes=_IMAGENET[depth],
    block_cls=block_cls
    or (blocks.BasicBlock if depth < 50 else blocks.BottleneckBlock),
    num_classes=1000,
    **fields,
  )


def _cifar(
  depth: int,
  block_cls: type[blocks.Block] = blocks.BasicBlock,
  *,
  layers_per_block: int = 2,
  **fields: Any,
) -> functools.partial[ResNet]:
  """Returns a CIFAR net: three stages of 16, 32 and 64 filters, option A.

  He et al. 2016, section 4.2. With n blocks per stage, the stem and the head,
  the depth is 6n + 2, or 9n + 2 for bottlenecks.
  """
  defaults = {
    'stage_sizes': ((depth - 2) // (3 * layers_per_block),) * 3,
    'num_classes': 10,
    'num_filters': 16,
    'stem': layers.cifar_stem,
    'stem_pool': None,
    'shortcut': 'A',
    # A thousand layers would take too long to compile one by one.
    'scan_blocks': depth > 1000,
  }
  return functools.partial(
    ResNet, block_cls=block_cls, **{**defaults, **fields}
  )


_MODELS: dict[str, Any] = {
  **{f'resnet{depth}': _imagenet(depth) for depth in _IMAGENET},
  # The paper's own bottlenecks have the stride in the first 1x1 (v1).
  **{
    f'resnet{depth}_v1': _imagenet(depth, block_options=_V1)
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
      depth,
      blocks.PreActBasicBlock if depth < 50 else blocks.PreActBottleneckBlock,
    )
    for depth in _IMAGENET
  },
  # Xie et al. 2017, "Aggregated residual transformations".
  **{
    f'resnext{depth}_32x{width}d': _imagenet(
      depth, block_options={'groups': 32, 'width_per_group': width}
    )
    for depth, width in ((50, 4), (101, 8))
  },
  # Zagoruyko and Komodakis 2016, "Wide residual networks", section 3.4.
  **{
    f'wide_resnet{depth}_2': _imagenet(
      depth, block_options={'width_per_group': 128}
    )
    for depth in (50, 101)
  },
  # Hu et al. 2018, "Squeeze-and-excitation networks".
  'seresnet50': _imagenet(50, block_options={'se_reduction': 16}),
  # Zhang 2019, "Making convolutional networks shift-invariant again", in timm's
  # variant.
  **{
    f'resnetblur{depth}': _imagenet(
      depth, block_options={'blur': True}, stem_pool=pooling.stem_blur_pool
    )
    for depth in (18, 50)
  },
  # Bello et al. 2021, "Revisiting ResNets", section 4.1.
  'resnetrs50': _imagenet(
    50,
    block_options={'se_reduction': 4},
    stem=layers.rs_stem,
    stem_pool=None,
    shortcut='D',
  ),
  # He et al. 2016, section 3.3: ResNet-18 and 34 without shortcuts.
  **{f'plain{depth}': _imagenet(depth, shortcut='none') for depth in (18, 34)},
  **{
    f'cifar_resnet{depth}': _cifar(depth)
    for depth in (8, 20, 32, 44, 56, 110, 1202)
  },
  **{
    f'cifar_plain{depth}': _cifar(depth, shortcut='none')
    for depth in (20, 32, 44, 56, 110)
  },
  # cifar_resnet20, 56 and 110 with each basic block replaced by a bottleneck of
  # nearly the same cost (Figure 5). Not in the paper.
  **{
    f'cifar_bottleneck_resnet{depth}': _cifar(
      depth, blocks.BottleneckBlock, layers_per_block=3, block_options=_V1
    )
    for depth in (29, 83, 164)
  },
  # "Identity mappings", section 3 (110 layers) and section 4 (164 and 1001:
  # bottlenecks, with projection shortcuts where the shape changes).
  'cifar_preact_resnet110': _cifar(110, blocks.PreActBasicBlock),
  **{
    f'cifar_preact_resnet{depth}': _cifar(
      depth,
      blocks.PreActBottleneckBlock,
      layers_per_block=3,
      block_options=_V1,  # As in the authors' released code.
      shortcut='B',
    )
    for depth in (164, 1001)
  },
  # Zagoruyko and Komodakis 2016, Table 1: k = 10, n = 4. The 28 layers include
  # three projections but not the head; the depth of `_cifar` is 6n + 2 = 26.
  'wrn28_10': _cifar(
    26, blocks.PreActBasicBlock, num_filters=160, stem_filters=16, shortcut='B'
  ),
  'lecture_resnet50': functools.partial(LectureResNet, num_classes=1000),
}


def list_models() -> list[str]:
  """Returns the names of all networks."""
  return list(_MODELS)


def create_model(name: str, **overrides: Any) -> Any:
  """Creates the network `name`, a linen module.

  Args:
    name: one of `list_models()`.
    **overrides: attributes of `ResNet` (or `LectureResNet`), such as
      `num_classes` or `dtype`.

  Raises:
    InputError: an unknown name (the message lists the nearest ones), an unknown
      attribute, or an impossible value.
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


def abstract_variables(
  model: Any, image_shape: Sequence[int] = (32, 32, 3)
) -> Any:
  """Returns the shapes and dtypes of a network's variables; nothing runs.

  They depend on the channels of the images, but not on the size.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


def _check(name: str, model: ResNet) -> None:
  """Raises InputError for the first attribute with an impossible value."""

  def check(field: str, is_good: bool, why: str) -> None:
    if not is_good:
      raise InputError(f'model.{field}={getattr(model, field)!r} {why}.')

  text = f'is not one of {", ".join(SHORTCUTS)}'
  check('shortcut', model.shortcut in SHORTCUTS, text)
  text = f'is not one of {", ".join(CONV_BACKENDS)}'
  check('conv_backend', model.conv_backend in (None, *CONV_BACKENDS), text)
  num = len(model.stage_sizes)
  text = f'is not in 0 .. {num}, the number of stages of {name}'
  check('frozen_stages', 0 <= model.frozen_stages <= num, text)
  check('drop_path', 0 <= model.drop_path < 1, 'is not in [0, 1)')
  check('dropout', 0 <= model.dropout < 1, 'is not in [0, 1)')
  if model.shortcut == 'none':
    text = f'would drop whole blocks of {name}, which has no shortcuts'
    check('drop_path', not model.drop_path, text)
    text = f'makes all activations zero, because {name} has no shortcuts'
    check('zero_init_last_scale', not model.zero_init_last_scale, text)
  if model.scan_blocks:
    text = f'is not supported by {name} with scan_blocks=True'
    check('drop_path', not model.drop_path, text)
