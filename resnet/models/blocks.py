"""Residual blocks (He et al. 2016, "Deep residual learning", Figure 5).

A block computes relu(F(x) + shortcut(x)). `conv`, `norm` and `shortcut` come
from the network, already bound to its dtype and mode.
"""

from collections.abc import Callable
from typing import ClassVar

from flax import linen as nn
import jax

from resnet.models.layers import ModuleDef


class BasicBlock(nn.Module):
  """Two 3x3 convolutions (Figure 5, left).

  Attributes:
    filters: width of both convolutions.
    strides: of the first convolution and of the shortcut.
    conv: (filters, kernel_size, strides, *, name) -> convolution.
    norm: (*, name) -> batch norm.
    shortcut: (x, filters, strides, *, conv, norm) -> array.
    last_scale_init: initialiser of the scale of the last batch norm.
  """

  expansion: ClassVar[int] = 1

  filters: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef
  shortcut: Callable[..., jax.Array]
  last_scale_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, filters]."""
    y = self.conv(self.filters, 3, self.strides, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(self.filters, 3, name='conv2')(y)
    y = self.norm(scale_init=self.last_scale_init, name='bn2')(y)
    shortcut = self.shortcut(
      x, self.filters, self.strides, conv=self.conv, norm=self.norm
    )
    return nn.relu(y + shortcut)


class BottleneckBlock(nn.Module):
  """1x1 reduce, 3x3, 1x1 expand by four (Figure 5, right).

  Attributes: as in `BasicBlock`, and
    stride_in_1x1: v1 (the paper) strides in the first 1x1 convolution, which
      skips three quarters of its input; v1.5 (torchvision, NVIDIA; the
      default) in the 3x3.
  """

  expansion: ClassVar[int] = 4

  filters: int
  strides: int
  conv: ModuleDef
  norm: ModuleDef
  shortcut: Callable[..., jax.Array]
  last_scale_init: nn.initializers.Initializer
  stride_in_1x1: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, 4 * filters]."""
    filters_out = self.expansion * self.filters
    strides_1x1 = self.strides if self.stride_in_1x1 else 1
    strides_3x3 = 1 if self.stride_in_1x1 else self.strides
    y = self.conv(self.filters, 1, strides_1x1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.conv(self.filters, 3, strides_3x3, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    y = self.conv(filters_out, 1, name='conv3')(y)
    y = self.norm(scale_init=self.last_scale_init, name='bn3')(y)
    shortcut = self.shortcut(
      x, filters_out, self.strides, conv=self.conv, norm=self.norm
    )
    return nn.relu(y + shortcut)
