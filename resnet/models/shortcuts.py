"""The shortcuts of residual blocks.

Each maps (x, activated, filters, strides, *, conv, norm) to the array that is
added to the residual. x is the input of the block, and `activated` is the input
of its first convolution. The two differ in pre-activation nets (v2), where a
shortcut that changes the shape starts after the first activation (He et al.
2016, "Identity mappings", appendix) and `norm` is None.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from resnet.models.layers import ModuleDef, accumulation_dtype

Shortcut = Callable[..., jax.Array]


def _where_shape_changes(shortcut: Shortcut) -> Shortcut:
  """Makes a shortcut the identity in blocks that keep the shape of x."""

  def identity_or(
    x: jax.Array, activated: jax.Array, filters: int, strides: int, **kw: Any
  ) -> jax.Array:
    if strides == 1 and x.shape[-1] == filters:
      return x
    return shortcut(x, activated, filters, strides, **kw)

  return identity_or


def projection(
  _: jax.Array,
  activated: jax.Array,
  filters: int,
  strides: int,
  *,
  conv: ModuleDef,
  norm: ModuleDef | None,
) -> jax.Array:
  """Applies a 1x1 convolution and, unless `norm` is None, batch norm."""
  y = conv(filters, 1, strides, name='shortcut_conv')(activated)
  return norm(name='shortcut_bn')(y) if norm else y


def zero_padding(
  x: jax.Array, activated: jax.Array, filters: int, strides: int, **_: ModuleDef
) -> jax.Array:
  """Takes every `strides`-th pixel and appends channels of zeros."""
  y = activated[:, ::strides, ::strides, :]
  return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, filters - x.shape[-1])))


def average_pool_projection(
  x: jax.Array,
  activated: jax.Array,
  filters: int,
  strides: int,
  **layers: ModuleDef,
) -> jax.Array:
  """Applies 2x2 average pooling instead of the stride, then a projection.

  If a side is odd, its last windows average only pixels inside the image.
  """
  if strides > 1:
    pads = tuple((0, -size % strides) for size in x.shape[1:3])
    pooled = nn.avg_pool(
      # Sum in float32 too: Flax divides by float32 pixel counts.
      activated.astype(accumulation_dtype(activated)),
      window_shape=(strides, strides),
      strides=(strides, strides),
      padding=pads,  # pyright: ignore[reportArgumentType]
      count_include_pad=False,
    )
    activated = pooled.astype(x.dtype)
  return projection(x, activated, filters, 1, **layers)


SHORTCUTS: dict[str, Shortcut | None] = {
  # Options of He et al. 2016, "Deep residual learning", Table 3.
  'A': _where_shape_changes(zero_padding),
  'B': _where_shape_changes(projection),
  'C': projection,
  # ResNet-D: He et al. 2019, "Bag of tricks", section 4.2.
  'D': _where_shape_changes(average_pool_projection),
  # Plain nets.
  'none': None,
}
