"""Crop and flip on the device, inside the jitted step.

Crop and flip take a batch of uint8 images [B, H, W, C] of one size and one key
per image, [B]. A result depends on its own image and key only, so devices share
no data. The distributions are those of `resnet.data.host.transforms`. To
compose functions, give each its own keys with `fold_in`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

Images = jax.Array
Keys = jax.Array
ImageOperation = Callable[[Images, Keys], Images]

_TRIES = 10
BOX_DRAWS = 2 * _TRIES + 2
_CROP, _FLIP = 0, 1
# Key streams for a whole batch: no row index is this large.
MIXING, NETWORK = 2**32 - 1, 2**32 - 2


def step_key(seed: int, step: jax.Array, stream: int) -> jax.Array:
  """Returns a key that is a function of seed, step and stream."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.random.fold_in(key, stream)


def example_keys(seed: int, step: jax.Array, batch_size: int) -> Keys:
  """Returns one key per row, [B]: a function of seed, step and row."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))


def fold_in(keys: Keys, stream: int) -> Keys:
  """Folds the number of a stream into each key [B]."""
  return jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)


def uniform(keys: Keys, count: int) -> jax.Array:
  """Draws uniform numbers in [0, 1), [B, count], from keys [B]."""
  return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def draw_boxes(
  draws: jax.Array,
  height: int,
  width: int,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
  is_tall: bool,
  fits: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Draws boxes with uniform area and log-uniform aspect.

  The first of ten tries that fits is placed uniformly in the image.

  Args:
    draws: uniform numbers [B, n]. The first BOX_DRAWS are used: area and aspect
      of each try, then top and left.
    height: image height, pixels.
    width: image width, pixels.
    area: smallest and largest area, as a share of the image.
    aspect: smallest and largest aspect.
    is_tall: define the aspect as height / width instead of width / height.
    fits: maps heights and widths, int32 [B, 10], to whether each box fits.

  Returns:
    Top, left, height and width, each int32 [B], and whether any try fits, bool
    [B].
  """
  pairs = draws[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
  low, high = math.log(aspect[0]), math.log(aspect[1])
  target = height * width * (area[0] + (area[1] - area[0]) * pairs[..., 0])
  ratio = jnp.exp(low + (high - low) * pairs[..., 1])
  h = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
  if not is_tall:
    h, w = w, h
  is_fitting = fits(h, w)
  first = jnp.argmax(is_fitting, axis=1)[:, None]
  h, w = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (h, w))
  # Clip because float32 may round the product of a draw near 1 up to room + 1.
  top, left = (
    jnp.clip((draw * (room + 1).astype(jnp.float32)).astype(jnp.int32), 0, room)
    for draw, room in (
      (draws[:, 2 * _TRIES], height - h),
      (draws[:, 2 * _TRIES + 1], width - w),
    )
  )
  return (top, left, h, w), is_fitting.any(axis=1)


def box_mask(
  box: Sequence[jax.Array] | jax.Array, height: int, width: int
) -> jax.Array:
  """Returns whether each pixel is in a box, bool [height, width].

  The `box` is top, left, height and width; it may extend beyond the edges.
  """
  rows = jnp.arange(height, dtype=jnp.int32) - box[0]
  columns = jnp.arange(width, dtype=jnp.int32) - box[1]
  is_row = (rows >= 0) & (rows < box[2])
  return is_row[:, None] & ((columns >= 0) & (columns < box[3]))[None]


def crop_and_resize(images: Images, boxes: jax.Array, size: int) -> Images:
  """Crops boxes, int32 [B, 4], and resizes them to uint8 [B, size, size, C].

  The resize is bilinear with antialiasing, as two matrix products: about 0.15
  GFLOP per 256 x 256 image, compared with 24 for a training step of ResNet-50.
  """
  _, height, width, _ = images.shape
  weights = jax.vmap(_weights, in_axes=(None, None, 0, 0))
  rows = weights(height, size, boxes[:, 0], boxes[:, 2])
  columns = weights(width, size, boxes[:, 1], boxes[:, 3])
  pixels = images.astype(jnp.float32)
  # By default TPUs and GPUs multiply float32 at reduced precision.
  product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  pixels = product('bih,bhwc->biwc', rows, pixels)
  pixels = product('bjw,biwc->bijc', columns, pixels)
  return jnp.round(jnp.clip(pixels, 0.0, 255.0)).astype(jnp.uint8)


def _weights(
  side: int, size: int, start: jax.Array, length: jax.Array
) -> jax.Array:
  """Returns the weight of each old pixel in each new one, [size, side].

  The filter is a triangle that spans two new pixels, and at least two old ones.
  Pixels outside the box have weight zero.
  """
  scale = length.astype(jnp.float32) / size
  reach = jnp.maximum(scale, 1.0)
  centres = (jnp.arange(size, dtype=jnp.float32) + 0.5) * scale
  places = jnp.arange(side) - start
  distance = places.astype(jnp.float32)[None] + 0.5 - centres[:, None]
  weights = jnp.maximum(1.0 - jnp.abs(distance) / reach, 0.0)
  weights *= ((places >= 0) & (places < length)).astype(jnp.float32)[None]
  return weights / weights.sum(axis=1, keepdims=True)


def pad_and_crop(images: Images, keys: Keys, *, padding: int) -> Images:
  """Pads each side with zeros and crops a random window of the old size."""
  _, height, width, channels = images.shape
  sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  offsets = jax.vmap(
    lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1)
  )(keys)

  def cut(image: jax.Array, offset: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(
      image, (offset[0], offset[1], 0), (height, width, channels)
    )

  return jax.vmap(cut)(jnp.pad(images, sides), offsets)


def random_flip(images: Images, keys: Keys) -> Images:
  """Mirrors each image left to right with probability one half."""
  is_flipped = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(is_flipped[:, None, None, None], images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceCrop:
  """Crops and flips on the device, as `TrainTransform` does on the host.

  Maps images [B, H, W, C] and keys [B] to images [B, size, size, C]. The
  attributes are those of `TrainTransform`, but the crops 'pad' and 'none' do
  not resize: the images must already have this size.
  """

  size: int
  crop: str
  area: tuple[float, float]
  aspect: tuple[float, float]
  padding: int
  flip: bool

  def boxes(self, keys: Keys, height: int, width: int) -> jax.Array:
    """Draws random boxes: top, left, height and width, int32 [B, 4].

    The distribution is that of `transforms.random_box` (Szegedy et al. 2015;
    torchvision's `RandomResizedCrop`). If no try fits, the box is the central
    one of the nearest allowed aspect.
    """
    boxes, is_found = draw_boxes(
      uniform(keys, BOX_DRAWS),
      height,
      width,
      area=self.area,
      aspect=self.aspect,
      is_tall=False,
      fits=lambda h, w: (w > 0) & (w <= width) & (h > 0) & (h <= height),
    )
    ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
    h = min(height, max(1, round(width / ratio)))
    w = min(width, max(1, round(height * ratio)))
    center = jnp.array([(height - h) // 2, (width - w) // 2, h, w], jnp.int32)
    return jnp.where(is_found[:, None], jnp.stack(boxes, axis=1), center[None])

  def __call__(self, images: Images, keys: Keys) -> Images:
    crop_keys = fold_in(keys, _CROP)
    if self.crop == 'random_resized':
      boxes = self.boxes(crop_keys, *images.shape[1:3])
      images = crop_and_resize(images, boxes, self.size)
    elif self.crop == 'pad':
      images = pad_and_crop(images, crop_keys, padding=self.padding)
    return random_flip(images, fold_in(keys, _FLIP)) if self.flip else images
