"""Shears, translations and rotations: affine warps of images."""

import math

import jax
import jax.numpy as jnp

OPERATIONS = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
# Fractional bits of a coordinate, so also of an interpolation weight. Two such
# weights times an 8-bit pixel are exact in float32.
_FRACTION_BITS = 8


def round_to_bits(values: jax.Array, bits: int) -> jax.Array:
  """Rounds to multiples of 2 ** -bits."""
  return jnp.round(values * 2.0**bits) * 2.0**-bits


def affine_matrices(
  chosen: dict[str, jax.Array], magnitudes: jax.Array, height: int, width: int
) -> jax.Array:
  """Returns matrices [B, 2, 3] from (x, y, 1) of a new pixel to the old (x, y).

  Coordinates are in pixels from the centre of the image. `chosen` tells for
  each operation to which images it is applied, bool [B]; magnitudes are float32
  [B].
  """

  def select(name: str, values: jax.Array) -> jax.Array:
    return jnp.where(chosen.get(name, False), values, 0.0)

  shear_x, shear_y = select('ShearX', magnitudes), select('ShearY', magnitudes)
  angle = jnp.deg2rad(select('Rotate', magnitudes))
  shift = jnp.trunc(magnitudes)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  rows = [
    [cos, shear_x - sin, shear_x * (height / 2) - select('TranslateX', shift)],
    [shear_y + sin, cos, shear_y * (width / 2) - select('TranslateY', shift)],
  ]
  result = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
  # New coordinates are multiples of 1/2. With matrices rounded to `bits`, old
  # coordinates below twice the longer side are exact in float32.
  bits = 22 - math.ceil(math.log2(max(height, width)))
  return round_to_bits(result, bits)


def warp(
  images: jax.Array, matrices: jax.Array, interpolation: str
) -> jax.Array:
  """Warps images by matrices [B, 2, 3]; pixels from outside are zero."""
  height, width = images.shape[1:3]
  x = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
  y = jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2

  def old(row: jax.Array, side: int) -> jax.Array:
    row = row[:, :, None, None]
    along = row[:, 0] * x[None, None] + row[:, 1] * y[None, :, None]
    return along + row[:, 2] + (side - 1) / 2

  column, line = old(matrices[:, 0], width), old(matrices[:, 1], height)
  if interpolation == 'nearest':
    return _pixels_at(images, jnp.round(line), jnp.round(column))
  line, column = (round_to_bits(p, _FRACTION_BITS) for p in (line, column))
  top, left = jnp.floor(line), jnp.floor(column)
  down, right = (line - top)[..., None], (column - left)[..., None]
  total = jnp.zeros(images.shape, jnp.float32)
  for i, of_line in ((0, 1.0 - down), (1, down)):
    for j, of_column in ((0, 1.0 - right), (1, right)):
      pixels = _pixels_at(images, top + i, left + j)
      total += pixels.astype(jnp.float32) * of_line * of_column
  return jnp.round(total).astype(jnp.uint8)


def _pixels_at(
  images: jax.Array, line: jax.Array, column: jax.Array
) -> jax.Array:
  """Returns images[b, line, column], [B, H, W, C]; zero outside."""
  batch, height, width, channels = images.shape
  is_inside = (line >= 0) & (line < height) & (column >= 0) & (column < width)
  place = jnp.where(is_inside, line * width + column, 0.0).astype(jnp.int32)
  found = jnp.take_along_axis(
    images.reshape(batch, height * width, channels),
    place.reshape(batch, height * width, 1),
    axis=1,
    mode='promise_in_bounds',
  )
  return jnp.where(is_inside[..., None], found.reshape(images.shape), 0)
