"""Shears, translations and rotations: a walk along a straight grid."""

import math

import jax
import jax.numpy as jnp

OPERATIONS = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
# Bits of a position between pixels: two weights and a pixel fill a float32.
_PLACE_BITS = 8


def round_to_bits(values: jax.Array, bits: int) -> jax.Array:
  """Rounds to multiples of 2 ** -bits."""
  return jnp.round(values * 2.0**bits) * 2.0**-bits


def affine_grids(
  chosen: dict[str, jax.Array], magnitudes: jax.Array, height: int, width: int
) -> jax.Array:
  """Returns [B, 2, 3]: (x, y, 1) of a new pixel -> x, y of the old one.

  Both are measured in pixels from the centre of the image. `chosen` says which
  images have an operation, `magnitudes`, float32 [B], how much of it.
  """
  nothing = jnp.zeros_like(magnitudes)

  def of(name: str, values: jax.Array) -> jax.Array:
    return jnp.where(chosen[name], values, 0.0) if name in chosen else nothing

  shear_x, shear_y = of('ShearX', magnitudes), of('ShearY', magnitudes)
  angle = jnp.deg2rad(of('Rotate', magnitudes))
  whole = jnp.trunc(magnitudes)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  rows = [
    [cos, shear_x - sin, shear_x * (height / 2) - of('TranslateX', whole)],
    [shear_y + sin, cos, shear_y * (width / 2) - of('TranslateY', whole)],
  ]
  result = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
  # A place has a half, and is less than twice the longer side away.
  bits = 22 - math.ceil(math.log2(max(height, width)))
  return round_to_bits(result, bits)


def warp(images: jax.Array, grids: jax.Array, interpolation: str) -> jax.Array:
  """Returns the pixels at the places of a grid [B, 2, 3]; zero outside."""
  height, width = images.shape[1:3]
  x = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
  y = jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2

  def old(row: jax.Array, side: int) -> jax.Array:
    row = row[:, :, None, None]
    along = row[:, 0] * x[None, None] + row[:, 1] * y[None, :, None]
    return along + row[:, 2] + (side - 1) / 2

  column, line = old(grids[:, 0], width), old(grids[:, 1], height)
  if interpolation == 'nearest':
    return _pixels_at(images, jnp.round(line), jnp.round(column))
  line, column = (round_to_bits(p, _PLACE_BITS) for p in (line, column))
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
