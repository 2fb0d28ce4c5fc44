"""Numbers that must stay finite, and checksums of arrays."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax


def all_finite(tree: Any) -> jax.Array:
  """Returns whether every number of a tree is finite, a bool scalar."""
  leaves = [x for x in jax.tree.leaves(tree) if _is_float(x)]
  # A reduction for each of hundreds of vectors would cost more than its work.
  small = [jnp.ravel(x) for x in leaves if x.ndim < 2]
  large = [x for x in leaves if x.ndim >= 2]
  if small:
    large.append(jnp.concatenate([x.astype(jnp.float32) for x in small]))
  finite = jnp.bool_(True)
  for x in large:
    finite &= jnp.all(jnp.isfinite(x))
  return finite


def choose(is_good: jax.Array, new: Any, old: Any) -> Any:
  """Returns `new` where `is_good`, else `old`.

  The count of a schedule is always new: the learning rate follows the step,
  whether its update was skipped or not. All other counts are of updates that
  were made, such as that of Adam's bias correction.
  """

  def choose_leaf(a: Any, b: Any) -> Any:
    return a if _is_schedule(a) else jnp.where(is_good, a, b)

  return jax.tree.map(choose_leaf, new, old, is_leaf=_is_schedule)


def _is_schedule(x: Any) -> bool:
  return isinstance(x, optax.ScaleByScheduleState)


def checksum(tree: Any) -> jax.Array:
  """Returns 32 bits that differ if any number of a tree does.

  Sums of the words of each array, each times another odd number, modulo 2**32:
  a change of one word always shows, and the order of sums does not matter, so
  that it is the same for any sharding.
  """
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(tree):
    words = _words(leaf)
    odd = 2 * lax.iota(jnp.uint32, len(words)) + 1
    total = total * jnp.uint32(0x01000193) + jnp.sum(
      words * odd, dtype=jnp.uint32
    )
  return total


def _words(x: jax.Array) -> jax.Array:
  """The bits of an array as a vector of uint32."""
  size = x.dtype.itemsize
  if size >= 4:
    return lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}[size]
  return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32).reshape(-1)


def _is_float(x: Any) -> bool:
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)
