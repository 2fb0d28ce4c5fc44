"""The residual network: stem, stages of blocks, average pool, dense head."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from resnet.models import convolution, layers
from resnet.models.blocks import PreActBlock
from resnet.models.scan import scan_blocks
from resnet.models.shortcuts import SHORTCUTS


class Network(nn.Module):
  """Gives logits or features of what `_forward` computes."""

  def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
    """Normalised images [B, H, W, C] -> logits [B, num_classes], float32.

    With `train`, batch norm uses the statistics of the batch and updates the
    collection 'batch_stats', which must then be mutable.
    """
    return self._forward(images, train=train)['logits']

  def features(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """Returns activations by name.

    'stem' is after its ReLU, before max-pooling, 'stage1' .. after the last
    block of the stage, [B, H, W, C] in `dtype`; 'pooled' is [B, C] float32.
    """
    features = self._forward(images, train=train)
    del features['logits']
    return features

  def _forward(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    raise NotImplementedError


class ResNet(Network):
  """He et al. 2016, "Deep residual learning for image recognition".

  Attributes:
    stage_sizes: number of blocks in each stage.
    block_cls: one of `resnet.models.blocks`, or a partial of one. Of those of
      v2 the stem activates the input of the first, and a batch norm and ReLU
      follow the last.
    num_classes: number of logits.
    num_filters: width of the first stage; each further stage doubles it and
      halves the resolution.
    stem: (x, filters, *, conv, norm) -> array.
    stem_filters: width of the stem; None: that of the first stage.
    stem_pool: x -> max-pooled x, between stem and first stage (the ImageNet
      nets); None: none.
    shortcut: 'A', 'B', 'C', 'D' or 'none', see `shortcuts.SHORTCUTS`.
    zero_init_last_scale: start each block as the identity: the scale of its
      last batch norm is zero (Goyal et al. 2017, section 5.1); in v2, where no
      batch norm is last, the kernel of its last convolution.
    scan_blocks: compile the equal blocks of a stage once and loop over them:
      for nets of hundreds of layers. The variables have the same tree and give
      the same results, but a key gives other first values.
    drop_path: in training, share of the images whose F(x) the last block
      leaves out; block l of L leaves out l / L times that (Huang et al. 2016,
      the linear rule). Of the stages that are frozen none is left out.
    dropout: in training, share of the pooled features that are left out. Both
      want a key, rngs={'dropout': key}.
    bn_group_size: images per group of batch statistics; None: whole batch.
    bn_momentum: share of the running statistics that one step keeps.
    frozen_stages: no gradient reaches the stem and so many stages, and their
      batch norms stay as they are; 0: all are trained. (It is the optimizer
      that leaves out their weight decay.)
    frozen_bn: batch norms normalise with their running statistics in training
      too, and leave them as they are.
    conv_backend: 'xla' or 'matmul', see `convolution`; None: the faster one on
      JAX's default backend.
    remat: keep of each block only its input for the backward pass, and compute
      it again there (Chen et al. 2016): less memory, a third more arithmetic.
    dtype: of the computation; parameters and statistics are float32, logits
      too, or float64 for float64.
  """

  stage_sizes: Sequence[int]
  block_cls: Callable[..., nn.Module]
  num_classes: int
  num_filters: int = 64
  stem: Callable[..., jax.Array] = layers.imagenet_stem
  stem_filters: int | None = None
  stem_pool: Callable[[jax.Array], jax.Array] | None = layers.stem_max_pool
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
    conv = functools.partial(
      layers.conv,
      backend=convolution.choose(self.conv_backend),
      dtype=self.dtype,
    )
    is_fixed = not train or self.frozen_bn
    norm = functools.partial(
      layers.BatchNorm,
      use_running_average=is_fixed,
      group_size=self.bn_group_size,
      momentum=self.bn_momentum,
      dtype=self.dtype,
    )
    block = functools.partial(
      _remat(self.block_cls) if self.remat else self.block_cls,
      conv=conv,
      norm=norm,
      shortcut=SHORTCUTS[self.shortcut],
      zero_init_last=self.zero_init_last_scale,
    )
    block_cls: Any = getattr(self.block_cls, 'func', self.block_cls)
    is_preact = issubclass(block_cls, PreActBlock)
    # A first block of v2 sees an activated stem, as any block of v1 does.
    options = {'activate_input': False} if is_preact else {}
    first_block = functools.partial(block, **options)
    features = {}
    x = images.astype(self.dtype)
    filters = self.stem_filters or self.num_filters
    fixed_norm = functools.partial(norm, use_running_average=True)
    stem_norm = fixed_norm if self.frozen_stages else norm
    x = features['stem'] = self.stem(x, filters, conv=conv, norm=stem_norm)
    if self.stem_pool:
      x = self.stem_pool(x)
    for i, num_blocks in enumerate(self.stage_sizes, start=1):
      stage_norm = fixed_norm if i <= self.frozen_stages else norm
      fields = {'filters': self.num_filters * 2 ** (i - 1), 'norm': stage_norm}
      drop_path = self.drop_path if train and i > self.frozen_stages else 0.0
      first = sum(self.stage_sizes[: i - 1]) + 1
      numbers = range(first, first + num_blocks)
      rates = [drop_path * n / sum(self.stage_sizes) for n in numbers]
      x = (first_block if i == 1 else block)(
        strides=1 if i == 1 else 2,
        name=f'stage{i}_block1',
        drop_rate=rates[0],
        **fields,
      )(x)
      others = functools.partial(block, strides=1, **fields)
      names = [f'stage{i}_block{j}' for j in range(2, num_blocks + 1)]
      if self.scan_blocks and names:
        x = scan_blocks(self, others, x, names)
      else:
        for name, rate in zip(names, rates[1:], strict=True):
          x = others(name=name, drop_rate=rate)(x)
      if i == self.frozen_stages:
        x = lax.stop_gradient(x)
      features[f'stage{i}'] = x
    if is_preact:
      x = nn.relu(norm(name='head_bn')(x))
    features['pooled'], features['logits'] = layers.head(
      x, self.num_classes, self.dropout if train else 0.0
    )
    return features


def _remat(block_cls: Any) -> Callable[..., nn.Module]:
  if isinstance(block_cls, functools.partial):
    return functools.partial(nn.remat(block_cls.func), **block_cls.keywords)
  return nn.remat(block_cls)
