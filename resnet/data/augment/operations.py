"""The image operations of AutoAugment and its successors, on the device.

Each image of a batch has its own operation and magnitude. Computing all
operations and selecting one would cost as much as all of them together. Instead
each image passes three stages: a table of 256 entries, a blend and an affine
warp, of which at least two leave it unchanged.

All operations match `torchvision.transforms.v2.functional` on tensors; their
names are those of Cubuk et al. 2019, Table 6. Factors and matrices are rounded
to few enough bits that the float32 arithmetic after them is exact. Otherwise
a pixel would depend on whether the compiler fuses a * b + c.
"""

from collections.abc import Sequence

import jax
from jax import lax
import jax.numpy as jnp

from resnet.data.augment import geometry
from resnet.data.augment.geometry import round_to_bits

OPERATIONS = (
  'Identity',
  *geometry.OPERATIONS,
  'Brightness',
  'Color',
  'Contrast',
  'Sharpness',
  'Posterize',
  'Solarize',
  'AutoContrast',
  'Equalize',
  'Invert',
)
# Weights of red, green and blue in the luma of ITU-R 601.
_LUMA = (0.2989, 0.587, 0.114)
# A float32 significand has 24 bits and a pixel has 8, so a factor up to 2 may
# have this many fractional bits.
_FACTOR_BITS = 14


def apply_operations(
  images: jax.Array,
  kinds: jax.Array,
  magnitudes: jax.Array,
  *,
  names: Sequence[str] = OPERATIONS,
  interpolation: str = 'nearest',
) -> jax.Array:
  """Applies to each image its own operation, with these magnitudes:

    'ShearX' reads x + magnitude * y, 'ShearY' y + magnitude * x, from top left
    'TranslateX', 'TranslateY': pixels, truncated
    'Rotate': degrees, counter-clockwise, about the centre
    'Brightness', 'Color', 'Contrast', 'Sharpness': the factor is 1 + magnitude;
      a factor of 1 changes nothing
    'Posterize': number of bits that are kept
    'Solarize': pixels of at least magnitude * 255 are inverted
    'AutoContrast', 'Equalize', 'Invert', 'Identity': not used

  Pixels from outside the image are zero.

  Args:
    images: uint8 [B, H, W, C] with 1 or 3 channels.
    kinds: indices in `names`, int32 [B].
    magnitudes: float32 [B].
    names: operations that `kinds` may select. Others are not computed.
    interpolation: used by the geometric operations: 'nearest' or 'bilinear'.

  Returns:
    uint8 [B, H, W, C].
  """
  chosen = {name: kinds == i for i, name in enumerate(names)}
  factors = round_to_bits(magnitudes, _FACTOR_BITS)
  tables = _tables(images, chosen, factors, 255.0 * magnitudes)
  images = _blend(_look_up(images, tables), chosen, factors)
  if any(name in names for name in geometry.OPERATIONS):
    matrices = geometry.affine_matrices(chosen, magnitudes, *images.shape[1:3])
    images = geometry.warp(images, matrices, interpolation)
  return images


def _to_uint8(values: jax.Array) -> jax.Array:
  """Clips to 0 .. 255 and truncates, as torchvision does."""
  return jnp.clip(values, 0.0, 255.0).astype(jnp.uint8)


def grayscale(images: jax.Array) -> jax.Array:
  """Returns the luma of uint8 images, rounded down, float32 [B, H, W, 1]."""
  pixels = images.astype(jnp.float32)
  if images.shape[-1] == 1:
    return pixels
  weights = round_to_bits(jnp.array(_LUMA, jnp.float32), _FACTOR_BITS)
  return jnp.floor(
    jnp.sum(pixels * weights[None, None, None], axis=-1, keepdims=True)
  )


def _tables(
  images: jax.Array,
  chosen: dict[str, jax.Array],
  magnitudes: jax.Array,
  thresholds: jax.Array,
) -> jax.Array:
  """Returns the new value of each pixel value, uint8 [B, 256, C].

  The magnitudes are rounded. The thresholds of 'Solarize' are not: many differ
  from an integer in their last bit only, which decides if a pixel is inverted.
  """
  values = jnp.arange(256, dtype=jnp.float32)[None, :, None]
  magnitude = magnitudes[:, None, None]

  def contrast() -> jax.Array:
    mean = jnp.mean(grayscale(images), axis=(1, 2))[:, None]
    offset = round_to_bits(mean * magnitude, _FACTOR_BITS)
    return values * (1.0 + magnitude) - offset

  def posterize() -> jax.Array:
    step = jnp.exp2(8.0 - jnp.floor(magnitude))
    return jnp.floor(values / step) * step

  def solarize() -> jax.Array:
    is_bright = values >= thresholds[:, None, None]
    return jnp.where(is_bright, 255.0 - values, values)

  result = jnp.broadcast_to(values, (len(images), 256, images.shape[-1]))
  for name, table in (
    ('Brightness', lambda: values * (1.0 + magnitude)),
    ('Contrast', contrast),
    ('Posterize', posterize),
    ('Solarize', solarize),
    ('Invert', lambda: 255.0 - values),
    ('AutoContrast', lambda: _stretch(images, values)),
    ('Equalize', lambda: _equalize(images)),
  ):
    if name in chosen:
      result = jnp.where(chosen[name][:, None, None], table(), result)
  return _to_uint8(result)


def _stretch(images: jax.Array, values: jax.Array) -> jax.Array:
  """Returns tables [B, 256, C] that stretch each channel to 0 .. 255."""
  low = images.min(axis=(1, 2)).astype(jnp.float32)[:, None]
  high = images.max(axis=(1, 2)).astype(jnp.float32)[:, None]
  scale = jnp.where(high > low, (high - low) / 255.0, 1.0)
  return (values - jnp.where(high > low, low, 0.0)) / scale


def _equalize(images: jax.Array) -> jax.Array:
  """Returns tables [B, 256, C] that flatten the histogram.

  They are computed with integers, as in Pillow.
  """
  count = images.shape[1] * images.shape[2]
  # Scattered writes are slow on accelerators; on a CPU, comparisons take 200
  # times as long as scattered writes (benchmarks/recipes.py).
  below = lax.platform_dependent(
    images, cpu=below_by_counting, default=below_by_comparing
  )
  # The number of pixels below the largest value of the channel.
  others = jnp.max(jnp.where(below < count, below, 0), axis=-1, keepdims=True)
  step = others // 255
  table = (below + step // 2) // jnp.maximum(step, 1)
  values = jnp.arange(256, dtype=jnp.int32)[None, None]
  table = jnp.where(step > 0, jnp.clip(table, 0, 255), values)
  return jnp.swapaxes(table, 1, 2).astype(jnp.float32)


def below_by_counting(images: jax.Array) -> jax.Array:
  """Counts the pixels of a channel below each value, int32 [B, C, 256]."""
  channels = images.shape[-1]
  first = 256 * jnp.arange(channels, dtype=jnp.int32)

  # Count per image: a table for the whole batch needs a sum over all devices.
  def count(image: jax.Array) -> jax.Array:
    places = (image.astype(jnp.int32) + first[None, None]).ravel()
    counts = jnp.zeros(channels * 256, jnp.int32)
    return counts.at[places].add(1, mode='promise_in_bounds')

  counts = jax.vmap(count)(images).reshape(-1, channels, 256)
  return jnp.cumsum(counts, axis=-1) - counts


def below_by_comparing(images: jax.Array) -> jax.Array:
  """Returns the same as `below_by_counting`, by comparing and summing."""
  values = jnp.arange(256, dtype=jnp.int32)[None, None, None, None]
  is_below = images.astype(jnp.int32)[..., None] < values
  return jnp.sum(is_below, axis=(1, 2), dtype=jnp.int32)


def _look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
  batch, height, width, channels = images.shape
  flat = images.reshape(batch, height * width, channels).astype(jnp.int32)
  result = jnp.take_along_axis(tables, flat, axis=1, mode='promise_in_bounds')
  return result.reshape(images.shape)


def _blend(
  images: jax.Array, chosen: dict[str, jax.Array], magnitudes: jax.Array
) -> jax.Array:
  """Blends images with, or away from, their grey or blurred version."""
  factor = jnp.zeros_like(magnitudes)
  pixels = other = images.astype(jnp.float32)
  for name, make in (('Color', grayscale), ('Sharpness', _blur)):
    if name in chosen:
      other = jnp.where(chosen[name][:, None, None, None], make(images), other)
      factor = jnp.where(chosen[name], magnitudes, factor)
  if other is pixels:
    return images
  factor = factor[:, None, None, None]
  return _to_uint8(pixels * (1.0 + factor) - other * factor)


def _blur(images: jax.Array) -> jax.Array:
  """Returns the 3x3 mean with weight 5 in the centre; edges are unchanged."""
  height, width = images.shape[1:3]
  pixels = images.astype(jnp.float32)
  if min(height, width) <= 2:
    return pixels
  rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
  box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  inner = jnp.round((box + 4.0 * pixels[:, 1:-1, 1:-1]) / 13.0)
  return pixels.at[:, 1:-1, 1:-1].set(inner)
