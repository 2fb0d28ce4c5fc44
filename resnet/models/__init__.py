"""Every network by name."""

from collections.abc import Callable
import functools
from typing import Any

from resnet.errors import InputError, nearest
from resnet.models import layers
from resnet.models.blocks import BasicBlock, BottleneckBlock
from resnet.models.resnet import ResNet

__all__ = ['create_model', 'list_models']

_BOTTLENECK_V1 = functools.partial(BottleneckBlock, stride_in_1x1=True)

_imagenet_resnet = functools.partial(ResNet, num_classes=1000)


def _cifar_resnet(depth: int) -> Callable[..., ResNet]:
  """He et al. 2016, section 4.2: depth 6n+2, widths 16, 32, 64, option A."""
  return functools.partial(
    ResNet,
    stage_sizes=((depth - 2) // 6,) * 3,
    block_cls=BasicBlock,
    num_classes=10,
    num_filters=16,
    stem=layers.cifar_stem,
    stem_pool=False,
    shortcut='A',
  )


_MODELS: dict[str, Callable[..., ResNet]] = {
  # He et al. 2016, Table 1; bottlenecks stride in the 3x3 (v1.5).
  **{
    f'resnet{depth}': functools.partial(
      _imagenet_resnet, block_cls=block_cls, stage_sizes=stage_sizes
    )
    for depth, block_cls, stage_sizes in (
      (18, BasicBlock, (2, 2, 2, 2)),
      (34, BasicBlock, (3, 4, 6, 3)),
      (50, BottleneckBlock, (3, 4, 6, 3)),
      (101, BottleneckBlock, (3, 4, 23, 3)),
      (152, BottleneckBlock, (3, 8, 36, 3)),
    )
  },
  # The paper's own bottlenecks stride in the first 1x1 (v1).
  **{
    f'resnet{depth}_v1': functools.partial(
      _imagenet_resnet, block_cls=_BOTTLENECK_V1, stage_sizes=stage_sizes
    )
    for depth, stage_sizes in (
      (50, (3, 4, 6, 3)),
      (101, (3, 4, 23, 3)),
      (152, (3, 8, 36, 3)),
    )
  },
  **{
    f'cifar_resnet{depth}': _cifar_resnet(depth)
    for depth in (8, 20, 32, 44, 56, 110, 1202)
  },
}


def list_models() -> list[str]:
  """Returns the names that `create_model` takes."""
  return list(_MODELS)


def create_model(name: str, **overrides: Any) -> ResNet:
  """Returns the network `name` as a linen module.

  Args:
    name: one of `list_models()`.
    **overrides: attributes of `ResNet`, such as `num_classes` or `dtype`.

  Raises:
    InputError: there is no such network (the nearest names are listed), or
      no such shortcut.
  """
  if name not in _MODELS:
    raise InputError(
      f'There is no model {name!r}.{nearest(name, _MODELS)}'
      ' All names: resnet.models.list_models().'
    )
  model = _MODELS[name](**overrides)
  if model.shortcut not in layers.SHORTCUTS:
    raise InputError(
      f'model.shortcut={model.shortcut!r} is none of'
      f' {", ".join(layers.SHORTCUTS)}.'
    )
  return model
