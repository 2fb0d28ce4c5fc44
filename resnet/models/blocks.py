"""Residual blocks.

  BasicBlock, BottleneckBlock              relu(F(x) + shortcut(x))
  PreActBasicBlock, PreActBottleneckBlock  F(relu(bn(x))) + shortcut(x)

The first two are He et al. 2016, "Deep residual learning", Figure 5, the others
He et al. 2016, "Identity mappings", Figure 1b.
"""

from typing import ClassVar

from flax import linen as nn
from flax.linen import initializers
import jax

from resnet.models import layers
from resnet.models.layers import ModuleDef
from resnet.models.shortcuts import Shortcut


class Block(nn.Module):
  """What all blocks are made with.

  Attributes:
    filters: width of the 3x3 convolutions.
    strides: of the block.
    conv: (filters, kernel_size, strides, *, name) -> convolution.
    norm: (*, name) -> batch norm.
    shortcut: one of `shortcuts.SHORTCUTS`; None in plain nets.
    zero_init_last: start with F(x) = 0: with zeros in the scale of the last
      batch norm or, in v2, in the last convolution.
    drop_rate: share of the images whose F(x) is left out, keyed by 'dropout',
      see `layers.drop_path`; 0 in evaluation.
  """

  filters: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef
  shortcut: Shortcut | None
  zero_init_last: bool
  drop_rate: float = 0.0


class PreActBlock(Block):
  """A block of v2; `activate_input` is False where x is activated already."""

  activate_input: bool = True


class BasicBlock(Block):
  """Two 3x3 convolutions (Figure 5, left).

  With `blur`, the first has stride 1, and after its ReLU `layers.blur_pool`
  halves the resolution where the block does.
  """

  blur: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
    strides = 1 if self.blur else self.strides
    y = self.conv(self.filters, 3, strides, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    if strides < self.strides:
      y = layers.blur_pool(y)
    y = self.conv(self.filters, 3, name='conv2')(y)
    y = _last_norm(self, name='bn2')(y)
    return nn.relu(_add_shortcut(self, y, x, x, norm=self.norm))


class BottleneckBlock(Block):
  """1x1 reduce, 3x3, 1x1 expand by four (Figure 5, right).

  Attributes: as all, and
    stride_in_1x1: v1 (the paper) strides in the first 1x1 convolution, which
      skips three quarters of its input; v1.5 (torchvision, NVIDIA; the
      default) in the 3x3.
    groups: of the 3x3 convolution (Xie et al. 2017, ResNeXt).
    width_per_group: of the 3x3 convolution, where `filters` is 64; it doubles
      when they do. More than 64 is a wide net (Zagoruyko, Komodakis 2016).
    se_reduction: squeeze-and-excitation before the addition, with a hidden
      width of so many times less (Hu et al. 2018); None: none.
    blur: as in `BasicBlock`, for the 3x3 convolution.
  """

  expansion: ClassVar[int] = 4

  stride_in_1x1: bool = False
  groups: int = 1
  width_per_group: int = 64
  se_reduction: int | None = None
  blur: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * filters]."""
    width = self.filters * self.width_per_group // 64 * self.groups
    filters_out = self.expansion * self.filters
    strides_1x1 = self.strides if self.stride_in_1x1 else 1
    strides_3x3 = 1 if self.stride_in_1x1 or self.blur else self.strides
    y = self.conv(width, 1, strides_1x1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(width, 3, strides_3x3, groups=self.groups, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    if strides_1x1 * strides_3x3 < self.strides:
      y = layers.blur_pool(y)
    y = self.conv(filters_out, 1, name='conv3')(y)
    y = _last_norm(self, name='bn3')(y)
    if self.se_reduction:
      y = layers.squeeze_excitation(y, self.se_reduction)
    return nn.relu(_add_shortcut(self, y, x, x, norm=self.norm))


class PreActBasicBlock(PreActBlock):
  """Batch norm and ReLU before each of two 3x3 convolutions."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
    activated = nn.relu(self.norm(name='bn1')(x)) if self.activate_input else x
    y = self.conv(self.filters, 3, self.strides, name='conv1')(activated)
    y = nn.relu(self.norm(name='bn2')(y))
    y = _last_conv(self, self.filters, 3, name='conv2')(y)
    return _add_shortcut(self, y, x, activated, norm=None)


class PreActBottleneckBlock(PreActBlock):
  """Batch norm and ReLU before each of 1x1 reduce, 3x3, 1x1 expand by four.

  `stride_in_1x1` is True in the CIFAR nets of the paper's authors, False in
  their ImageNet nets.
  """

  expansion: ClassVar[int] = 4

  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * filters]."""
    filters_out = self.expansion * self.filters
    strides_1x1 = self.strides if self.stride_in_1x1 else 1
    strides_3x3 = 1 if self.stride_in_1x1 else self.strides
    activated = nn.relu(self.norm(name='bn1')(x)) if self.activate_input else x
    y = self.conv(self.filters, 1, strides_1x1, name='conv1')(activated)
    y = nn.relu(self.norm(name='bn2')(y))
    y = self.conv(self.filters, 3, strides_3x3, name='conv2')(y)
    y = nn.relu(self.norm(name='bn3')(y))
    y = _last_conv(self, filters_out, 1, name='conv3')(y)
    return _add_shortcut(self, y, x, activated, norm=None)


def _add_shortcut(
  block: Block,
  residual: jax.Array,
  x: jax.Array,
  activated: jax.Array,
  *,
  norm: ModuleDef | None,
) -> jax.Array:
  """Returns F(x) plus the shortcut; of a plain net F(x) alone."""
  if block.shortcut is None:
    return residual
  if block.drop_rate:
    key = block.make_rng('dropout')
    residual = layers.drop_path(residual, block.drop_rate, key)
  filters = residual.shape[-1]
  return residual + block.shortcut(
    x, activated, filters, block.strides, conv=block.conv, norm=norm
  )


def _last_norm(block: Block, *, name: str) -> nn.Module:
  zeros, ones = initializers.zeros, initializers.ones
  return block.norm(
    scale_init=zeros if block.zero_init_last else ones, name=name
  )


def _last_conv(
  block: Block, filters: int, kernel_size: int, *, name: str
) -> nn.Module:
  init = initializers.zeros if block.zero_init_last else layers.he_normal
  return block.conv(filters, kernel_size, kernel_init=init, name=name)
