"""Gradient accumulation: a batch in micro-batches, one after the other."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]

# The most micro-batches that a CPU's program repeats: each is compiled.
MOST_UNROLLED_PARTS = 8


def split_batch(batch: Batch, parts: int, group_size: int | None) -> Batch:
  """[B, ...] -> [parts, B / parts, ...]; as it is, for one part.

  A part takes whole groups of batch statistics, and takes them from every
  device alike, so nothing moves between devices. 'part' is its number.
  """
  if parts == 1:
    return batch

  def split(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, parts, group_size or 1, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

  numbers = jnp.arange(parts, dtype=jnp.int32)
  return {**jax.tree.map(split, dict(batch)), 'part': numbers}


def mean_over_parts(
  fn: Callable[[Batch], Any], parts: Batch, *, unroll: bool
) -> Any:
  """Returns the mean of fn(part), holding one part's activations at a time."""
  num_parts = len(parts['label'])

  def take(index: jax.Array | int) -> Batch:
    return jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), parts
    )

  def add_part(total: Any, index: jax.Array | int) -> Any:
    return jax.tree.map(jnp.add, total, fn(take(index)))

  total = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, take(0))
  )
  if unroll:
    for index in range(num_parts):
      total = add_part(total, index + _zero_after(total))
  else:
    total = lax.fori_loop(0, num_parts, lambda i, x: add_part(x, i), total)
  return jax.tree.map(lambda x: x / num_parts, total)


def _zero_after(tree: Any) -> jax.Array:
  """Returns 0, which XLA cannot know before all arrays of the tree are there.

  So what is computed from it comes later, and the memory of what came before
  is free. (On a CPU, XLA drops `lax.optimization_barrier` before it schedules.)
  """
  some = [x.ravel()[0].astype(jnp.float32) for x in jax.tree.leaves(tree)]
  some = jnp.stack(some)
  return jnp.any((some < 0.0) & (some > 0.0)).astype(jnp.int32)
