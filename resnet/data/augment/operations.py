"""The image operations of AutoAugment and its followers, on the device.

Each image of a batch has its own operation and magnitude. To choose
between whole images would cost as much as all operations together; but of most
of them the result is a table of 256 entries, and the others are one blend and
one walk along a straight grid. So an image goes through table, blend and grid,
of which two leave it as it is.

All equal `torchvision.transforms.v2.functional` on tensors; the names are those
of Cubuk et al. 2019, Table 6. Factors and grids are rounded to so few bits that
float32 makes no error in what follows: or else compilers, which choose between
a * b + c with one rounding and with two, would choose the pixel, too.
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
# A pixel has 8 bits and a float32 24: so many are left for a factor up to 2.
_FACTOR_BITS = 14


def apply_operations(
  images: jax.Array,
  kinds: jax.Array,
  magnitudes: jax.Array,
  *,
  names: Sequence[str] = OPERATIONS,
  interpolation: str = 'nearest',
) -> jax.Array:
  """Applies to each image its own operation.

    'ShearX', 'ShearY': x += magnitude * y, from the top left corner
    'TranslateX', 'TranslateY': by so many pixels, truncated
    'Rotate': by so many degrees, counter-clockwise, about the centre
    'Brightness', 'Color', 'Contrast', 'Sharpness': by the factor
      1 + magnitude, where 1 is the image as it is
    'Posterize': to so many bits
    'Solarize': inverts what is at least magnitude * 255
    'AutoContrast', 'Equalize', 'Invert', 'Identity': no magnitude

  What comes from outside of the image is zero.

  Args:
    images: uint8 [B, H, W, C], of 1 or 3 channels.
    kinds: places in `names`, int32 [B].
    magnitudes: float32 [B].
    names: of OPERATIONS, those that `kinds` may be: others cost nothing.
    interpolation: of the geometric operations, 'nearest' or 'bilinear'.

  Returns:
    uint8 [B, H, W, C].
  """
  chosen = {name: kinds == i for i, name in enumerate(names)}
  factors = round_to_bits(magnitudes, _FACTOR_BITS)
  tables = _tables(images, chosen, factors, 255.0 * magnitudes)
  if tables is not None:
    images = _look_up(images, tables)
  images = _blend(images, chosen, factors)
  if any(name in names for name in geometry.OPERATIONS):
    grids = geometry.affine_grids(chosen, magnitudes, *images.shape[1:3])
    images = geometry.warp(images, grids, interpolation)
  return images


def _to_uint8(values: jax.Array) -> jax.Array:
  """Clips to 0 .. 255 and truncates, as torchvision does."""
  return jnp.clip(values, 0.0, 255.0).astype(jnp.uint8)


def grayscale(images: jax.Array) -> jax.Array:
  """uint8 [B, H, W, C] -> luma, whole numbers as float32 [B, H, W, 1]."""
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
) -> jax.Array | None:
  """Returns what becomes of each value, uint8 [B, 256, C]; None: nothing.

  `chosen` says whether an image has the operation of that name. Magnitudes are
  rounded, but not the thresholds of 'Solarize': many are whole numbers but for
  the last bit, and that decides.
  """
  values = jnp.arange(256, dtype=jnp.float32)[None, :, None]
  magnitude = magnitudes[:, None, None]
  made = {}
  if 'Brightness' in chosen:
    made['Brightness'] = values * (1.0 + magnitude)
  if 'Contrast' in chosen:
    mean = jnp.mean(grayscale(images), axis=(1, 2))[:, None]
    offset = round_to_bits(mean * magnitude, _FACTOR_BITS)
    made['Contrast'] = values * (1.0 + magnitude) - offset
  if 'Posterize' in chosen:
    step = jnp.exp2(8.0 - jnp.floor(magnitude))
    made['Posterize'] = jnp.floor(values / step) * step
  if 'Solarize' in chosen:
    is_bright = values >= thresholds[:, None, None]
    made['Solarize'] = jnp.where(is_bright, 255.0 - values, values)
  if 'Invert' in chosen:
    made['Invert'] = 255.0 - values
  if 'AutoContrast' in chosen:
    made['AutoContrast'] = _stretch(images, values)
  if 'Equalize' in chosen:
    made['Equalize'] = _equalize(images)
  if not made:
    return None
  shape = (len(images), 256, images.shape[-1])
  result = jnp.broadcast_to(values, shape)
  for name, table in made.items():
    result = jnp.where(chosen[name][:, None, None], table, result)
  return _to_uint8(result)


def _stretch(images: jax.Array, values: jax.Array) -> jax.Array:
  """Table [B, 256, C] that stretches each channel to 0 .. 255."""
  low = images.min(axis=(1, 2)).astype(jnp.float32)[:, None]
  high = images.max(axis=(1, 2)).astype(jnp.float32)[:, None]
  scale = jnp.where(high > low, (high - low) / 255.0, 1.0)
  return (values - jnp.where(high > low, low, 0.0)) / scale


def _equalize(images: jax.Array) -> jax.Array:
  """Table [B, 256, C] that makes the histogram flat, in Pillow's integers."""
  count = images.shape[1] * images.shape[2]
  # Accelerators do not like scattered writes; on a CPU comparisons take 200
  # times as long as these (benchmarks/recipes.py).
  below = lax.platform_dependent(
    images, cpu=below_by_counting, default=below_by_comparing
  )
  # Pixels below the largest value of the channel.
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

  # An image at a time: with one table for all, devices would add up theirs.
  def count(image: jax.Array) -> jax.Array:
    places = (image.astype(jnp.int32) + first[None, None]).ravel()
    counts = jnp.zeros(channels * 256, jnp.int32)
    return counts.at[places].add(1, mode='promise_in_bounds')

  counts = jax.vmap(count)(images).reshape(-1, channels, 256)
  return jnp.cumsum(counts, axis=-1) - counts


def below_by_comparing(images: jax.Array) -> jax.Array:
  """Counts like `below_by_counting`, by comparisons and a sum in one loop."""
  values = jnp.arange(256, dtype=jnp.int32)[None, None, None, None]
  is_below = images.astype(jnp.int32)[..., None] < values
  return jnp.sum(is_below, axis=(1, 2), dtype=jnp.int32)


def _look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
  batch, height, width, channels = images.shape
  flat = images.reshape(batch, height * width, channels).astype(jnp.int32)
  found = jnp.take_along_axis(tables, flat, axis=1, mode='promise_in_bounds')
  return found.reshape(images.shape)


def _blend(
  images: jax.Array, chosen: dict[str, jax.Array], magnitudes: jax.Array
) -> jax.Array:
  """Moves images away from a grey or blurred version, or towards it."""
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
  """Mean of 3x3 pixels, the middle counted five times; edges as they are."""
  height, width = images.shape[1:3]
  pixels = images.astype(jnp.float32)
  if min(height, width) <= 2:
    return pixels
  rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
  box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  inner = jnp.round((box + 4.0 * pixels[:, 1:-1, 1:-1]) / 13.0)
  return pixels.at[:, 1:-1, 1:-1].set(inner)
