"""A lecture's simplified ResNet-50: convolutions, biases, ReLUs, additions.

Unlike He et al. 2016, it has no batch norm, and each stage begins with a 3x3
convolution of stride 2, so that no shortcut has to change a shape. Padding is
'SAME' as in the lecture: for an even image, a strided convolution pads one more
row of zeros at the end than at the beginning.
"""

from collections.abc import Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from resnet.models import layers
from resnet.models.resnet import Network

_conv = functools.partial(nn.Conv, padding='SAME', kernel_init=layers.he_normal)


class Bottleneck(nn.Module):
  """1x1 reduce, 3x3, 1x1 expand, each with bias and ReLU.

  With 256 channels, reduced to 64, the three kernels have 256 x 64 +
  3 x 3 x 64 x 64 + 64 x 256 = 69,632 weights. A single 3x3 convolution of 256
  channels has 3 x 3 x 256 x 256 = 589,824.

  Attributes:
    reduction: channels of the 3x3 convolution.
    expansion: channels of the output.
    is_residual: add the input before the last ReLU, and start as the identity:
      the last kernel is zero.
    dtype: dtype of the computation.
  """

  reduction: int
  expansion: int
  is_residual: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, expansion]; if residual, C is `expansion`."""
    conv = functools.partial(_conv, dtype=self.dtype)
    last_init = nn.initializers.zeros if self.is_residual else layers.he_normal
    y = nn.relu(conv(self.reduction, (1, 1), name='conv1')(x))
    y = nn.relu(conv(self.reduction, (3, 3), name='conv2')(y))
    y = conv(self.expansion, (1, 1), kernel_init=last_init, name='conv3')(y)
    return nn.relu(x + y if self.is_residual else y)


class LectureResNet(Network):
  """7x7 convolution, stages of residual bottlenecks, average pool, dense head.

  Attributes:
    num_classes: number of logits.
    stage_sizes: number of residual bottlenecks in each stage.
    num_filters: `reduction` of the first stage; each further stage doubles it.
      The channels of a stage are twice its `reduction`.
    dtype: dtype of the computation; parameters and logits are float32.
  """

  num_classes: int
  stage_sizes: Sequence[int] = (3, 4, 6, 3)
  num_filters: int = 64
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def _forward(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    del train  # Training and evaluation are the same without batch norm.
    features = {}
    x = images.astype(self.dtype)
    conv = functools.partial(_conv, strides=2, dtype=self.dtype)
    x = conv(self.num_filters, (7, 7), name='stem_conv')(x)
    x = features['stem'] = nn.relu(x)
    for i, num_blocks in enumerate(self.stage_sizes, start=1):
      reduction = self.num_filters * 2 ** (i - 1)
      bottleneck = functools.partial(
        Bottleneck, reduction, 2 * reduction, is_residual=True, dtype=self.dtype
      )
      x = nn.relu(conv(2 * reduction, (3, 3), name=f'stage{i}_conv')(x))
      for j in range(1, num_blocks + 1):
        x = bottleneck(name=f'stage{i}_block{j}')(x)
      features[f'stage{i}'] = x
    features['pooled'], features['logits'] = layers.head(x, self.num_classes)
    return features
