"""Guards for the training state: finiteness checks and checksums."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax


def all_finite(tree: Any) -> jax.Array:
  """Returns a bool scalar: whether all floats of a tree are finite."""
  leaves = [
    x
    for x in jax.tree.leaves(tree)
    if jnp.issubdtype(jnp.result_type(x), jnp.floating)
  ]
  # Check all vectors in one reduction: hundreds of small ones would be slower.
  small = [jnp.ravel(x) for x in leaves if x.ndim < 2]
  large = [x for x in leaves if x.ndim >= 2]
  if small:
    large.append(jnp.concatenate([x.astype(jnp.float32) for x in small]))
  finite = jnp.bool_(True)
  for x in large:
    finite &= jnp.all(jnp.isfinite(x))
  return finite


def choose(is_good: jax.Array, new: Any, old: Any) -> Any:
  """Returns `new` if `is_good`, else `old`.

  The step count of a schedule is always the new one: the learning rate depends
  on the step, even if its update is skipped. All other counts, such as that of
  Adam's bias correction, count only the updates that were applied.
  """

  def is_schedule(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)

  def choose_leaf(a: Any, b: Any) -> Any:
    return a if is_schedule(a) else jnp.where(is_good, a, b)

  return jax.tree.map(choose_leaf, new, old, is_leaf=is_schedule)


def checksum(tree: Any) -> jax.Array:
  """Returns a 32-bit checksum of all arrays of a tree.

  It sums the 32-bit words of each array, each word times a different odd
  number, modulo 2**32. A change of one word always changes the checksum, and
  the order of summation does not, so every sharding gives the same value.
  """
  sums = []
  for leaf in jax.tree.leaves(tree):
    # The bits of the array as 32-bit words: 64-bit numbers become two.
    unsigned = f'uint{8 * min(leaf.dtype.itemsize, 4)}'
    bits = lax.bitcast_convert_type(leaf, unsigned)
    words = bits.astype(jnp.uint32).reshape(-1)
    odd = 2 * lax.iota(jnp.uint32, len(words)) + 1
    sums.append(jnp.sum(words * odd, dtype=jnp.uint32))
  # Powers of an odd number tell the arrays apart. One product of vectors: a
  # chain of thousands of scalars takes XLA minutes to compile.
  factors = np.full(len(sums), 0x01000193, np.uint32)
  factors[:1] = 1
  powers = np.cumprod(factors, dtype=np.uint32)[::-1]
  return jnp.sum(jnp.stack(sums) * powers, dtype=jnp.uint32)
