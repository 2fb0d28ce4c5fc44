"""The shortcuts of residual blocks.

Each maps (x, activated, filters, strides, *, conv, norm) to what is added to
the residual. x is the input of the block, `activated` is what its first
convolution sees: x itself but in pre-activation nets (v2), where a shortcut
that changes the shape begins after the first activation (He et al. 2016,
"Identity mappings", appendix) and any other is x. `norm` is None there.
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from resnet.models.layers import ModuleDef, accumulation_dtype

Shortcut = Callable[..., jax.Array]


def projection(
  _: jax.Array,
  activated: jax.Array,
  filters: int,
  strides: int,
  *,
  conv: ModuleDef,
  norm: ModuleDef | None,
) -> jax.Array:
  """Option C: a 1x1 convolution and batch norm in every block."""
  y = conv(filters, 1, strides, name='shortcut_conv')(activated)
  return norm(name='shortcut_bn')(y) if norm else y


def zero_padding_shortcut(
  x: jax.Array, activated: jax.Array, filters: int, strides: int, **_: ModuleDef
) -> jax.Array:
  """Option A: every `strides`-th pixel, new channels are zeros; no parameter.

  The zeros come after the channels of x.
  """
  if not _changes_shape(x, filters, strides):
    return x
  y = activated[:, ::strides, ::strides, :]
  return jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, filters - x.shape[-1])))


def projection_shortcut(
  x: jax.Array,
  activated: jax.Array,
  filters: int,
  strides: int,
  **layers: ModuleDef,
) -> jax.Array:
  """Option B: the identity, or a projection where the shape changes."""
  if not _changes_shape(x, filters, strides):
    return x
  return projection(x, activated, filters, strides, **layers)


def average_pool_shortcut(
  x: jax.Array,
  activated: jax.Array,
  filters: int,
  strides: int,
  **layers: ModuleDef,
) -> jax.Array:
  """ResNet-D: as B, but 2x2 averages take the place of the stride.

  He et al. 2019, "Bag of tricks", section 4.2. At an odd border the mean is
  over the pixels that there are.
  """
  if not _changes_shape(x, filters, strides):
    return x
  if strides > 1:
    pads = tuple((0, -size % strides) for size in x.shape[1:3])
    pooled = nn.avg_pool(
      # Flax divides by counts in float32.
      activated.astype(accumulation_dtype(activated)),
      window_shape=(strides, strides),
      strides=(strides, strides),
      padding=pads,  # pyright: ignore[reportArgumentType]
      count_include_pad=False,
    )
    activated = pooled.astype(x.dtype)
  return projection(x, activated, filters, 1, **layers)


def _changes_shape(x: jax.Array, filters: int, strides: int) -> bool:
  return strides != 1 or x.shape[-1] != filters


SHORTCUTS: dict[str, Shortcut | None] = {
  # The options of He et al. 2016, "Deep residual learning", Table 3.
  'A': zero_padding_shortcut,
  'B': projection_shortcut,
  'C': projection,
  'D': average_pool_shortcut,
  # The plain nets.
  'none': None,
}
