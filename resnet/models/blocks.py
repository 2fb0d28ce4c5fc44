"""Residual blocks.

  BasicBlock, BottleneckBlock              relu(F(x) + shortcut(x))
  PreActBasicBlock, PreActBottleneckBlock  F(relu(bn(x))) + shortcut(x)

The first two (v1) are from He et al. 2016, "Deep residual learning", Figure 5;
the others (v2) from He et al. 2016, "Identity mappings", Figure 1b.
"""

from flax import linen as nn
from flax.linen import initializers
import jax

from resnet.models import layers, pooling
from resnet.models.layers import ModuleDef
from resnet.models.shortcuts import Shortcut


class Block(nn.Module):
  """The attributes that all blocks share.

  Attributes:
    filters: width of the block: output channels of its 3x3 convolutions.
    strides: factor by which the block reduces height and width.
    conv: (filters, kernel_size, strides, *, name) -> convolution.
    norm: (*, name) -> batch norm.
    shortcut: one of `shortcuts.SHORTCUTS`; None for plain nets.
    zero_init_last: start with F(x) = 0: a zero scale in the last batch norm
      or, in v2, a zero kernel in the last convolution.
    drop_rate: probability that an image skips F(x), see `layers.drop_path`; 0
      in evaluation. Uses the key stream 'dropout'.
  """

  filters: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef
  shortcut: Shortcut | None
  zero_init_last: bool
  drop_rate: float = 0.0


class PreActBlock(Block):
  """A v2 block; `activate_input` is False if x has already been activated."""

  activate_input: bool = True


class BasicBlock(Block):
  """Two 3x3 convolutions (Figure 5, left).

  With `blur`, the first convolution always has stride 1. If `strides` is 2,
  `pooling.blur_pool` after its ReLU halves the resolution instead.
  """

  blur: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
    strides = 1 if self.blur else self.strides
    y = self.conv(self.filters, 3, strides, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    if strides < self.strides:
      y = pooling.blur_pool(y)
    y = self.conv(self.filters, 3, name='conv2')(y)
    y = _last_norm(self, name='bn2')(y)
    return nn.relu(_add_shortcut(self, y, x, x))


class BottleneckBlock(Block):
  """1x1 reduce, 3x3, 1x1 expand by four (Figure 5, right).

  Attributes: those of `Block`, and
    stride_in_1x1: True puts the stride in the first 1x1 convolution, which then
      skips three quarters of its input (v1, the paper); False, the default,
      in the 3x3 (v1.5, torchvision and NVIDIA).
    groups: groups of the 3x3 convolution (Xie et al. 2017, ResNeXt).
    width_per_group: channels per group of the 3x3 convolution when `filters` is
      64; proportional to `filters`. A value above 64 gives a wide net
      (Zagoruyko and Komodakis 2016).
    se_reduction: ratio of channels to hidden units of squeeze-and-excitation,
      applied before the addition (Hu et al. 2018); None: not applied.
    blur: as in `BasicBlock`, for the 3x3 convolution.
  """

  stride_in_1x1: bool = False
  groups: int = 1
  width_per_group: int = 64
  se_reduction: int | None = None
  blur: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * filters]."""
    width = self.filters * self.width_per_group // 64 * self.groups
    filters_out = 4 * self.filters
    strides_1x1 = self.strides if self.stride_in_1x1 else 1
    strides_3x3 = 1 if self.stride_in_1x1 or self.blur else self.strides
    y = self.conv(width, 1, strides_1x1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(width, 3, strides_3x3, groups=self.groups, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    if strides_1x1 * strides_3x3 < self.strides:
      y = pooling.blur_pool(y)
    y = self.conv(filters_out, 1, name='conv3')(y)
    y = _last_norm(self, name='bn3')(y)
    if self.se_reduction:
      y = layers.squeeze_excitation(y, self.se_reduction)
    return nn.relu(_add_shortcut(self, y, x, x))


class PreActBasicBlock(PreActBlock):
  """Two 3x3 convolutions, each after a batch norm and ReLU."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
    activated = nn.relu(self.norm(name='bn1')(x)) if self.activate_input else x
    y = self.conv(self.filters, 3, self.strides, name='conv1')(activated)
    y = nn.relu(self.norm(name='bn2')(y))
    y = _last_conv(self, self.filters, 3, name='conv2')(y)
    return _add_shortcut(self, y, x, activated)


class PreActBottleneckBlock(PreActBlock):
  """1x1 reduce, 3x3, 1x1 expand by four, each after a batch norm and ReLU.

  `stride_in_1x1` is True in the CIFAR nets of the paper's authors, False in
  their ImageNet nets.
  """

  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * filters]."""
    filters_out = 4 * self.filters
    strides_1x1 = self.strides if self.stride_in_1x1 else 1
    strides_3x3 = 1 if self.stride_in_1x1 else self.strides
    activated = nn.relu(self.norm(name='bn1')(x)) if self.activate_input else x
    y = self.conv(self.filters, 1, strides_1x1, name='conv1')(activated)
    y = nn.relu(self.norm(name='bn2')(y))
    y = self.conv(self.filters, 3, strides_3x3, name='conv2')(y)
    y = nn.relu(self.norm(name='bn3')(y))
    y = _last_conv(self, filters_out, 1, name='conv3')(y)
    return _add_shortcut(self, y, x, activated)


def _add_shortcut(
  block: Block, residual: jax.Array, x: jax.Array, activated: jax.Array
) -> jax.Array:
  """Returns F(x) plus the shortcut of x, or F(x) alone for a plain net."""
  if block.shortcut is None:
    return residual
  if block.drop_rate:
    key = block.make_rng('dropout')
    residual = layers.drop_path(residual, block.drop_rate, key)
  filters = residual.shape[-1]
  # The shortcuts of v2 have no batch norm.
  norm = None if isinstance(block, PreActBlock) else block.norm
  return residual + block.shortcut(
    x, activated, filters, block.strides, conv=block.conv, norm=norm
  )


def _last_norm(block: Block, *, name: str) -> nn.Module:
  init = initializers.zeros if block.zero_init_last else initializers.ones
  return block.norm(scale_init=init, name=name)


def _last_conv(
  block: Block, filters: int, kernel_size: int, *, name: str
) -> nn.Module:
  init = initializers.zeros if block.zero_init_last else layers.he_normal
  return block.conv(filters, kernel_size, kernel_init=init, name=name)
