"""Keys, and functions of a batch on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.augment import crop
from resnet.training.sharding import create_sharding


def keys_of(count, seed=0, step=0):
  """Returns keys [count], one an image."""
  return crop.example_keys(seed, jnp.int32(step), count)


def assert_images_depend_on_their_keys_only(function, images):
  """Asserts equal images on one device and on eight that do not communicate.

  Args:
    function: from images [B, H, W, C] and keys [B] to uint8 [B, h, w, C].
    images: uint8 [B, H, W, C], where B is a multiple of eight.

  Returns:
    The images of seed 0.
  """
  count = len(images)
  whole = np.array(jax.jit(function)(images, keys_of(count)))
  assert whole.dtype == np.uint8
  sharding = create_sharding().batch
  compiled = (
    jax.jit(
      lambda images, seed: function(images, keys_of(count, seed)),
      in_shardings=(sharding, None),
      out_shardings=sharding,
    )
    .lower(images, jnp.int32(0))
    .compile()
  )
  for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective'):
    assert word not in compiled.as_text()
  images = jax.device_put(images, sharding)
  same, other = (np.array(compiled(images, jnp.int32(s))) for s in (0, 1))
  np.testing.assert_array_equal(same, whole)
  assert (other != whole).any()
  return whole
