"""The layers of a residual network: convolution, norm, gate, stem, head.

Images and activations are NHWC. Convolutions have no bias, because batch norm
follows. Their padding is explicit, never 'SAME', so that strided layers see the
same pixels as in the papers' Caffe and Torch networks.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from resnet.models import convolution

ModuleDef = Callable[..., Any]

# Goyal et al. 2017, section 5.1: the last layer starts with small weights.
head_init = nn.initializers.normal(0.01)

# He et al. 2015, "Delving deep into rectifiers", eq. 14 (the backward case):
# a normal distribution of variance 2 / (k * k * filters).
he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


def conv(
  filters: int,
  kernel_size: int,
  strides: int = 1,
  *,
  name: str,
  groups: int = 1,
  kernel_init: nn.initializers.Initializer = he_normal,
  backend: str = 'xla',
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> nn.Conv:
  """Creates a square convolution without bias, padded by (kernel_size - 1) / 2.

  It maps [B, H, W, C] to [B, H / strides, W / strides, filters], in `dtype`.
  `backend` is one of `convolution.CONV_BACKENDS`.
  """
  return nn.Conv(
    filters,
    (kernel_size, kernel_size),
    strides=strides,
    padding=(kernel_size - 1) // 2,
    feature_group_count=groups,
    use_bias=False,
    kernel_init=kernel_init,
    conv_general_dilated=convolution.CONV_BACKENDS[backend],
    dtype=dtype,
    name=name,
  )


class BatchNorm(nn.Module):
  """Batch normalisation over groups of images (Ioffe and Szegedy 2015).

      y = (x - mean) / sqrt(var + epsilon) * scale + bias

  The statistics of a group come from sums of x and x * x in one pass over the
  activations; applying them is one multiply-add per element. Parameters and
  statistics have the same names, shapes and meaning as in
  `flax.linen.BatchNorm`. With `group_size=None`, the results are the same too.

  A group is `group_size` consecutive images. If no group spans several
  devices, the forward and backward pass need no communication. The running
  statistics average the mean and (biased) variance of all groups.

  For inference, `inference.folding` puts the multiplication into the kernel of
  the convolution before, so that only the addition of 'offset' is left.

  Attributes:
    use_running_average: normalise with the running statistics (evaluation).
    group_size: images per group of statistics; None: the whole batch.
    momentum: weight of the old running statistics in their update.
    epsilon: added to the variance.
    dtype: dtype of the output. The arithmetic is in float32, or in float64
      if the input is float64.
    scale_init: initialiser of the scale.
  """

  use_running_average: bool
  group_size: int | None = None
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: jax.typing.DTypeLike = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [B, H, W, C]."""
    if self.use_running_average and self.has_variable('params', 'offset'):
      offset = self.get_variable('params', 'offset')[None, None, None]
      return (x.astype(accumulation_dtype(x)) + offset).astype(self.dtype)
    channels = x.shape[-1]
    scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
    statistic = functools.partial(self.variable, 'batch_stats')
    running_mean = statistic('mean', jnp.zeros, (channels,), jnp.float32)
    running_var = statistic('var', jnp.ones, (channels,), jnp.float32)
    if self.use_running_average:
      mean, var = running_mean.value[None], running_var.value[None]
    else:
      mean, var = self._group_statistics(x)
      if not self.is_initializing():
        keep = self.momentum
        for running, new in ((running_mean, mean), (running_var, var)):
          kept = keep * running.value
          running.value = kept + (1 - keep) * jnp.mean(new, axis=0)
    multiplier = lax.rsqrt(var + self.epsilon) * scale[None]  # [groups, C]
    offset = bias[None] - mean * multiplier
    grouped = _split_groups(x, len(mean))
    y = grouped * multiplier[:, None, None, None] + offset[:, None, None, None]
    return y.astype(self.dtype).reshape(x.shape)

  def _group_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each group, [groups, C]."""
    group_size = len(x) if self.group_size is None else self.group_size
    if group_size <= 0 or len(x) % group_size:
      raise ValueError(
        f'bn_group_size={group_size} does not divide a batch of {len(x)} images'
      )
    grouped = _split_groups(x, len(x) // group_size)
    mean = jnp.mean(grouped, axis=(1, 2, 3))
    mean_of_square = jnp.mean(lax.square(grouped), axis=(1, 2, 3))
    # Rounding can make the difference of two large numbers negative.
    return mean, jnp.maximum(mean_of_square - lax.square(mean), 0.0)


def _split_groups(x: jax.Array, num_groups: int) -> jax.Array:
  """[B, H, W, C] -> [groups, B / groups, H, W, C], float32 or float64."""
  x = x.astype(accumulation_dtype(x))
  return x.reshape(num_groups, -1, *x.shape[1:])


def accumulation_dtype(x: jax.Array) -> jax.typing.DTypeLike:
  """Returns the dtype for sums over x: float64 if x is that, else float32."""
  return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def squeeze_excitation(x: jax.Array, reduction: int) -> jax.Array:
  """Scales each channel of x [B, H, W, C] by a gate in (0, 1).

    gate = sigmoid(W2 relu(W1 mean(x)))     (Hu et al. 2018, section 3)

  with C / `reduction` hidden units.
  """
  channels = x.shape[-1]
  dense = functools.partial(nn.Dense, kernel_init=he_normal, dtype=x.dtype)
  y = jnp.mean(x, axis=(1, 2))
  y = nn.relu(dense(channels // reduction, name='se_reduce')(y))
  y = nn.sigmoid(dense(channels, name='se_expand')(y))
  return x * y[:, None, None, :]


def imagenet_stem(
  x: jax.Array, filters: int, *, conv: ModuleDef, norm: ModuleDef
) -> jax.Array:
  """Applies a 7x7 convolution of stride 2 (He et al. 2016, Table 1, conv1)."""
  x = conv(filters, 7, 2, name='stem_conv')(x)
  return nn.relu(norm(name='stem_bn')(x))


def deep_stem(
  x: jax.Array, filters: int, *, conv: ModuleDef, norm: ModuleDef
) -> jax.Array:
  """Applies 3x3 convolutions of strides 2, 1, 1 (He et al. 2019, ResNet-C)."""
  for i, width in enumerate((filters // 2, filters // 2, filters), start=1):
    x = conv(width, 3, 2 if i == 1 else 1, name=f'stem_conv{i}')(x)
    x = nn.relu(norm(name=f'stem_bn{i}')(x))
  return x


def rs_stem(
  x: jax.Array, filters: int, *, conv: ModuleDef, norm: ModuleDef
) -> jax.Array:
  """Applies the deep stem and a strided 3x3 convolution, without max-pooling.

  Bello et al. 2021, "Revisiting ResNets", section 4.1 (ResNet-RS).
  """
  x = deep_stem(x, filters, conv=conv, norm=norm)
  x = conv(filters, 3, 2, name='stem_conv4')(x)
  return nn.relu(norm(name='stem_bn4')(x))


def cifar_stem(
  x: jax.Array, filters: int, *, conv: ModuleDef, norm: ModuleDef
) -> jax.Array:
  """Applies a 3x3 convolution of stride 1 (He et al. 2016, section 4.2)."""
  x = conv(filters, 3, name='stem_conv')(x)
  return nn.relu(norm(name='stem_bn')(x))


def drop_path(residual: jax.Array, rate: float, key: jax.Array) -> jax.Array:
  """Drops F(x) [B, H, W, C] of each image with probability `rate`.

    F(x) * b / (1 - rate),  b = 1 with probability 1 - rate, else 0

  Huang et al. 2016, "Deep networks with stochastic depth", section 3. The paper
  multiplies by 1 - rate in evaluation. Here training divides by it instead, so
  that evaluation needs no change.
  """
  is_kept = jax.random.bernoulli(key, 1 - rate, (len(residual), 1, 1, 1))
  return jnp.where(is_kept, residual / (1 - rate), 0)


def head(
  x: jax.Array, num_classes: int, dropout_rate: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Applies global average pooling, dropout and a dense layer.

  Args:
    x: [B, H, W, C].
    num_classes: number of logits; 0: no dense layer, the logits are `pooled`.
    dropout_rate: probability that a pooled feature is dropped (Srivastava et
      al. 2014), with the key stream 'dropout'; 0 in evaluation.

  Returns:
    The pooled features [B, C] and the logits [B, num_classes], in float32, or
    in float64 if x is float64.
  """
  dtype = accumulation_dtype(x)
  pooled = jnp.mean(x, axis=(1, 2), dtype=dtype)
  if not num_classes:
    return pooled, pooled
  dense = nn.Dense(num_classes, kernel_init=head_init, dtype=dtype, name='head')
  dropout = nn.Dropout(dropout_rate, deterministic=not dropout_rate)
  return pooled, dense(dropout(pooled))
