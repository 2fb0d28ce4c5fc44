"""The residual network: stem, stages of blocks, average pool, dense head."""

from collections.abc import Callable, Sequence
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from resnet.models import layers


class ResNet(nn.Module):
  """He et al. 2016, "Deep residual learning for image recognition".

  Attributes:
    stage_sizes: number of blocks in each stage.
    block_cls: `BasicBlock` or `BottleneckBlock`, or a partial of one.
    num_classes: number of logits.
    num_filters: width of the first stage; each further stage doubles it and
      halves the resolution.
    stem: (x, filters, *, conv, norm) -> array.
    stem_pool: max-pool between stem and first stage (the ImageNet nets).
    shortcut: option 'A', 'B' or 'C', see `layers.SHORTCUTS`.
    zero_init_last_scale: start each block as the identity: the scale of its
      last batch norm is zero (Goyal et al. 2017, section 5.1).
    bn_group_size: images per group of batch statistics; None: whole batch.
    bn_momentum: share of the running statistics that one step keeps.
    dtype: of the computation; parameters, statistics, logits are float32.
  """

  stage_sizes: Sequence[int]
  block_cls: Callable[..., nn.Module]
  num_classes: int
  num_filters: int = 64
  stem: Callable[..., jax.Array] = layers.imagenet_stem
  stem_pool: bool = True
  shortcut: str = 'B'
  zero_init_last_scale: bool = False
  bn_group_size: int | None = None
  bn_momentum: float = 0.9
  dtype: jax.typing.DTypeLike = jnp.float32

  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Normalised images [B, H, W, C] -> logits [B, num_classes], float32.

    With `train`, batch norm uses the statistics of the batch and updates the
    collection 'batch_stats', which must then be mutable.
    """
    return self._forward(images, train=train)['logits']

  def features(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Activations by name.

    Returns:
      'stem': after its ReLU, before max-pooling (Table 1 counts the pooling
        to the first stage); 'stage1' ..: after the last block of the stage,
        [B, H, W, C] in `dtype`; 'pooled': [B, C] float32.
    """
    features = self._forward(images, train=train)
    del features['logits']
    return features

  @nn.compact
  def _forward(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.BatchNorm,
      use_running_average=not train,
      group_size=self.bn_group_size,
      momentum=self.bn_momentum,
      dtype=self.dtype,
    )
    last_scale_init = (
      nn.initializers.zeros
      if self.zero_init_last_scale
      else nn.initializers.ones
    )
    block = functools.partial(
      self.block_cls,
      conv=conv,
      norm=norm,
      shortcut=layers.SHORTCUTS[self.shortcut],
      last_scale_init=last_scale_init,
    )
    features = {}
    x = images.astype(self.dtype)
    x = features['stem'] = self.stem(x, self.num_filters, conv=conv, norm=norm)
    if self.stem_pool:
      x = layers.stem_max_pool(x)
    for i, num_blocks in enumerate(self.stage_sizes, start=1):
      for j in range(1, num_blocks + 1):
        x = block(
          filters=self.num_filters * 2 ** (i - 1),
          strides=2 if i > 1 and j == 1 else 1,
          name=f'stage{i}_block{j}',
        )(x)
      features[f'stage{i}'] = x
    x = features['pooled'] = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    # Goyal et al. 2017, section 5.1: a small normal for the last layer.
    features['logits'] = nn.Dense(
      self.num_classes, kernel_init=nn.initializers.normal(0.01), name='head'
    )(x)
    return features
