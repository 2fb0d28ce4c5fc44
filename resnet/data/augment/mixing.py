"""Mixup and cutmix: each image with that of the mirrored row of its group.

Row i of a group of g images is mixed with row g - 1 - i, and one draw holds for
the group. In timm and torchvision the group is the batch of a process, and in
timm the partner is the same. What is mixed may be uint8 pixels or normalised
images: the average of two is normalised as they are.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

Draw = dict[str, jax.Array]  # Scalars by name.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
  """A batch that was mixed.

  Attributes:
    images: float32 [B, H, W, C], in the units of those that were given.
    targets: shares of the classes, float32 [B, K]; each row sums to one.
    main_labels: the class with the larger share, int32 [B].
  """

  images: jax.Array
  targets: jax.Array
  main_labels: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
  """How a batch is mixed.

  Attributes:
    mixup_alpha: share ~ Beta(alpha, alpha) (Zhang et al. 2018); 0: no mixup.
    cutmix_alpha: the same for Yun et al. 2019; 0: no cutmix.
    probability: that a group is mixed at all.
    cutmix_share: of the groups that are mixed, where both are on.
    group_size: neighbouring images that are mixed among themselves, a divisor
      of the batch size; None: the whole batch. No image leaves its device
      where a device holds whole groups.
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
  ) -> Mixed:
    """Mixes images [B, H, W, C] and labels int32 [B]; one draw a group.

    `replicate` puts a small array on every device, so that each makes all
    draws: split over devices, a loop of rejections would have a collective in
    each round.
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
    return Mixed(
      images=mix_images(images, shares),
      targets=mix_targets(labels, share, num_classes),
      main_labels=main.reshape(-1),
    )

  def draw(self, key: jax.Array, height: int, width: int) -> Draw:
    """Returns what is random in a group of images [height, width]."""
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
    """Returns what an image keeps of each of its pixels, [height, width]."""
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
  """Returns 1 in the box that comes from the other image, else 0.

  The box has sides sqrt(1 - share) times those of the image, truncated to
  whole pixels, and is cut off at the edges: so the share that is left is one
  minus the mean of this, float32 [height, width], not `share`. Its `center` is
  a row and a column.
  """
  ratio = jnp.sqrt(1.0 - share)

  def is_inside(side: int, middle: jax.Array) -> jax.Array:
    length = (side * ratio).astype(jnp.int32)
    places = jnp.arange(side, dtype=jnp.int32)
    start, end = middle - length // 2, middle + (length + 1) // 2
    return (places >= start) & (places < end)

  rows, columns = is_inside(height, center[0]), is_inside(width, center[1])
  return (rows[:, None] & columns[None, :]).astype(jnp.float32)


def mix_images(images: jax.Array, shares: jax.Array) -> jax.Array:
  """Returns shares * image + (1 - shares) * the mirrored row's image, float32.

  The `shares` are what an image of each group keeps of its pixels, float32
  [groups, H, W].
  """
  groups = images.reshape(len(shares), -1, *images.shape[1:])
  groups = groups.astype(jnp.float32)
  shares = shares[:, None, :, :, None]
  mixed = groups * shares + groups[:, ::-1] * (1.0 - shares)
  return mixed.reshape(images.shape)


def mix_targets(
  labels: jax.Array, share: jax.Array, num_classes: int
) -> jax.Array:
  """Returns share * onehot(label) + (1 - share) * that of the mirrored row.

  The `share`, float32 [groups], is that of the own label; the result is float32
  [B, num_classes].
  """
  targets = jax.nn.one_hot(labels.reshape(len(share), -1), num_classes)
  share = share[:, None, None]
  mixed = targets * share + targets[:, ::-1] * (1.0 - share)
  return mixed.reshape(-1, num_classes)
