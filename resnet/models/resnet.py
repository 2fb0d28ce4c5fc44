"""The residual network: stem, stages of blocks, average pool, dense head."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from resnet.models import convolution, layers, pooling
from resnet.models.blocks import Block, PreActBlock
from resnet.models.layers import ModuleDef
from resnet.models.scan import scan_blocks
from resnet.models.shortcuts import SHORTCUTS


class Network(nn.Module):
  """The interface of all networks: logits or features of images."""

  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Maps normalised images [B, H, W, C] to float32 logits [B, num_classes].

    With `train`, batch norm uses the statistics of the batch and updates the
    collection 'batch_stats', which must then be mutable.
    """
    return self._forward(images, train=train)['logits']

  def features(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns activations by name.

    'stem' is the output of the ReLU, before max-pooling, and 'stage1', 'stage2'
    .. are the outputs of the stages, [B, H, W, C] in `dtype`; 'pooled' is the
    input of the head, [B, C] float32.
    """
    features = self._forward(images, train=train)
    del features['logits']
    return features

  def _forward(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns the features and 'logits'."""
    raise NotImplementedError


class ResNet(Network):
  """He et al. 2016, "Deep residual learning for image recognition".

  Attributes:
    stage_sizes: number of blocks in each stage.
    block_cls: one of `resnet.models.blocks`. With v2 blocks, the first block
      omits its leading batch norm and ReLU, as the stem ends with them, and
      the last block is followed by a batch norm and ReLU.
    block_options: further attributes of all blocks, such as `groups`.
    num_classes: number of logits.
    num_filters: width of the first stage; each further stage doubles it and
      halves the resolution.
    stem: (x, filters, *, conv, norm) -> array.
    stem_filters: width of the stem; None: that of the first stage.
    stem_pool: (x, *, backend) -> max-pooled x, between the stem and the first
      stage (ImageNet nets); None: no pooling.
    shortcut: 'A', 'B', 'C', 'D' or 'none', see `shortcuts.SHORTCUTS`.
    zero_init_last_scale: start each block as the identity: a zero scale in
      its last batch norm (Goyal et al. 2017, section 5.1) or, in v2, a zero
      kernel in its last convolution.
    scan_blocks: compile the equal blocks of a stage once and loop over them,
      for nets of hundreds of layers. The variables have the same names and
      shapes and give the same results; the same key gives other initial values.
    drop_path: in training, probability that the last block skips F(x) of an
      image; block l of L skips it with l / L times that probability (Huang et
      al. 2016, the linear rule). Frozen stages skip nothing.
    dropout: in training, probability that a pooled feature is dropped. Drop
      path and dropout need a key: rngs={'dropout': key}.
    bn_group_size: images per group of batch statistics; None: whole batch.
    bn_momentum: weight of the old running statistics in their update.
    frozen_stages: number of leading stages to freeze, with the stem: they
      get no gradient, and their batch norms keep their running statistics; 0
      trains everything. (The optimizer does not decay their weights.)
    frozen_bn: batch norms normalise with their running statistics in training
      too, and never update them.
    conv_backend: 'xla' or 'matmul', see `convolution` and `pooling`; None: the
      faster one on JAX's default backend.
    remat: store only the input of each block for the backward pass and
      recompute the rest (Chen et al. 2016): less memory, a third more
      arithmetic.
    dtype: dtype of the computation. Parameters, statistics and logits are
      float32; with float64, the logits are float64 too.
  """

  stage_sizes: Sequence[int]
  block_cls: type[Block]
  num_classes: int
  block_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_filters: int = 64
  stem: Callable[..., jax.Array] = layers.imagenet_stem
  stem_filters: int | None = None
  stem_pool: Callable[..., jax.Array] | None = pooling.stem_max_pool
  shortcut: str = 'B'
  zero_init_last_scale: bool = False
  scan_blocks: bool = False
  drop_path: float = 0.0
  dropout: float = 0.0
  bn_group_size: int | None = None
  bn_momentum: float = 0.9
  frozen_stages: int = 0
  frozen_bn: bool = False
  conv_backend: str | None = None
  remat: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def _forward(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    backend = self.conv_backend or convolution.fastest_backend()
    conv = functools.partial(layers.conv, backend=backend, dtype=self.dtype)
    norm = functools.partial(
      layers.BatchNorm,
      use_running_average=not train or self.frozen_bn,
      group_size=self.bn_group_size,
      momentum=self.bn_momentum,
      dtype=self.dtype,
    )
    frozen_norm = functools.partial(norm, use_running_average=True)
    features = {}
    x = features['stem'] = self.stem(
      images.astype(self.dtype),
      self.stem_filters or self.num_filters,
      conv=conv,
      norm=frozen_norm if self.frozen_stages else norm,
    )
    if self.stem_pool:
      x = self.stem_pool(x, backend=backend)
    for i in range(1, len(self.stage_sizes) + 1):
      is_frozen = i <= self.frozen_stages
      x = self._stage(
        x,
        i,
        drop_path=self.drop_path if train and not is_frozen else 0.0,
        conv=conv,
        norm=frozen_norm if is_frozen else norm,
      )
      if i == self.frozen_stages:
        x = lax.stop_gradient(x)
      features[f'stage{i}'] = x
    if issubclass(self.block_cls, PreActBlock):
      x = nn.relu(norm(name='head_bn')(x))
    features['pooled'], features['logits'] = layers.head(
      x, self.num_classes, self.dropout if train else 0.0
    )
    return features

  def _stage(
    self, x: jax.Array, stage: int, *, drop_path: float, **layer_defs: ModuleDef
  ) -> jax.Array:
    """Applies one stage: a block that may change the shape, then the others."""
    first_block = sum(self.stage_sizes[: stage - 1]) + 1
    num_blocks = self.stage_sizes[stage - 1]
    names = [f'stage{stage}_block{j}' for j in range(1, num_blocks + 1)]
    drop_rates = [
      drop_path * block / sum(self.stage_sizes)
      for block in range(first_block, first_block + num_blocks)
    ]
    block = functools.partial(
      nn.remat(self.block_cls) if self.remat else self.block_cls,
      filters=self.num_filters * 2 ** (stage - 1),
      shortcut=SHORTCUTS[self.shortcut],
      zero_init_last=self.zero_init_last_scale,
      **self.block_options,
      **layer_defs,
    )
    first: dict[str, Any] = {'strides': 1 if stage == 1 else 2}
    if stage == 1 and issubclass(self.block_cls, PreActBlock):
      first['activate_input'] = False  # The stem ends with a ReLU.
    x = block(name=names[0], drop_rate=drop_rates[0], **first)(x)
    block = functools.partial(block, strides=1)
    if self.scan_blocks and num_blocks > 1:
      return scan_blocks(self, block, x, names[1:])
    for name, rate in zip(names[1:], drop_rates[1:], strict=True):
      x = block(name=name, drop_rate=rate)(x)
    return x
