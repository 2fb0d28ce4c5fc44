"""Mixup and cutmix: each image is mixed with a partner from its group.

The partner of row i in a group of g images is row g - 1 - i. Each group has one
random draw. In timm and torchvision the group is the batch of a process; timm
pairs rows in the same way. Images may be uint8 pixels or normalised, because
normalisation and averaging commute.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from resnet.data.augment.crop import box_mask

Draw = dict[str, jax.Array]  # Scalars by name.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """Mixes the images and labels of a batch.

  Attributes:
    mixup_alpha: share ~ Beta(alpha, alpha) (Zhang et al. 2018); 0 for no mixup.
    cutmix_alpha: the same for cutmix (Yun et al. 2019); 0 for no cutmix.
    probability: probability that a group is mixed at all.
    cutmix_share: if both are on, the share of mixed groups that get cutmix.
    group_size: number of neighbouring images that are mixed with each other, a
      divisor of the batch size; None for the whole batch. If each device holds
      whole groups, no image leaves its device.
  """

  mixup_alpha: float
  cutmix_alpha: float
  probability: float
  cutmix_share: float
  group_size: int | None = None

  @property
  def is_on(self) -> bool:
    """Whether any batch is mixed."""
    return bool(self.mixup_alpha or self.cutmix_alpha) and self.probability > 0

  def __call__(
    self,
    images: jax.Array,
    labels: jax.Array,
    num_classes: int,
    key: jax.Array,
    replicate: Callable[[jax.Array], jax.Array] = lambda x: x,
  ) -> dict[str, jax.Array]:
    """Mixes images [B, H, W, C] and labels int32 [B], with one draw per group.

    `replicate` puts a small array on every device, so that each device makes
    all draws: if they were sharded, the loop of rejection sampling would run a
    collective in every iteration.

    Returns:
      'image', float32 [B, H, W, C], in the units of `images`; 'target', the
      share of each class, float32 [B, K], where each row sums to one; 'label',
      the class with the larger share, int32 [B].
    """
    num_groups = len(images) // (self.group_size or len(images))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_groups))
    height, width = images.shape[1:3]
    draws = jax.vmap(lambda key: self.draw(key, height, width))(keys)
    shares = jax.vmap(lambda draw: self.shares(draw, height, width))(
      jax.tree.map(replicate, draws)
    )
    share = jnp.mean(shares, axis=(1, 2))
    grouped = labels.reshape(num_groups, -1)
    main = jnp.where(share[:, None] >= 0.5, grouped, grouped[:, ::-1])
    return {
      'image': mix_rows(images, shares[..., None]),
      'target': mix_rows(jax.nn.one_hot(labels, num_classes), share[:, None]),
      'label': main.reshape(-1),
    }

  def draw(self, key: jax.Array, height: int, width: int) -> Draw:
    """Draws the random numbers of a group of images [height, width]."""
    keys = jax.random.split(key, 5)
    uniform = jax.random.uniform(keys[0], (2,))
    chance = self.cutmix_share if self.mixup_alpha else 1.0
    draws: Draw = {'is_mixed': uniform[1] < self.probability}
    if alpha := self.mixup_alpha:
      draws['mixup'] = jax.random.beta(keys[1], alpha, alpha)
    if alpha := self.cutmix_alpha:
      draws['is_cutmix'] = uniform[0] < chance
      draws['cutmix'] = jax.random.beta(keys[2], alpha, alpha)
      draws['row'] = jax.random.randint(keys[3], (), 0, height)
      draws['column'] = jax.random.randint(keys[4], (), 0, width)
    return draws

  def shares(self, draw: Draw, height: int, width: int) -> jax.Array:
    """Returns the share that an image keeps of each pixel, [height, width]."""
    shares = jnp.ones((height, width), jnp.float32)
    if self.mixup_alpha:
      shares = jnp.broadcast_to(draw['mixup'], shares.shape)
    if self.cutmix_alpha:
      center = draw['row'], draw['column']
      inside = cutmix_mask(draw['cutmix'], center, height, width)
      shares = jnp.where(draw['is_cutmix'], 1.0 - inside, shares)
    return jnp.where(draw['is_mixed'], shares, 1.0)


def cutmix_mask(
  share: jax.Array, center: tuple[jax.Array, jax.Array], height: int, width: int
) -> jax.Array:
  """Returns float32 [height, width]: 1 in the box of the other image, else 0.

  The sides of the box are sqrt(1 - share) times those of the image, truncated
  to whole pixels. The box is clipped to the image, so the share that the image
  keeps is one minus the mean of the mask, not `share`. The `center` is a
  row and a column.
  """
  ratio = jnp.sqrt(1.0 - share)
  h, w = ((side * ratio).astype(jnp.int32) for side in (height, width))
  box = center[0] - h // 2, center[1] - w // 2, h, w
  return box_mask(box, height, width).astype(jnp.float32)


def mix_rows(rows: jax.Array, shares: jax.Array) -> jax.Array:
  """Returns shares * row + (1 - shares) * partner row of its group, float32.

  The `rows` are [B, ...]. The `shares` of a group, float32 [groups, ...], are
  those that a row keeps of its own values; they are broadcast over the row.
  """
  groups = rows.reshape(len(shares), -1, *rows.shape[1:]).astype(jnp.float32)
  shares = shares[:, None]
  mixed = groups * shares + groups[:, ::-1] * (1.0 - shares)
  return mixed.reshape(rows.shape)
