"""Gradient accumulation over the micro-batches of a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]

# The most micro-batches to unroll on a CPU, because each is compiled anew.
MAX_UNROLLED = 8


def split_batch(batch: Batch, count: int, group_size: int | None) -> Batch:
  """Splits [B, ...] into micro-batches [count, B / count, ...].

  A group of images that share batch statistics stays in one micro-batch. Every
  micro-batch takes equally many images from each device, so none of them moves.
  A micro-batch's 'part' is its index. If count is 1, the batch is unchanged.
  """
  if count == 1:
    return batch

  def split(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, count, group_size or 1, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(count, -1, *x.shape[3:])

  indices = jnp.arange(count, dtype=jnp.int32)
  return {**jax.tree.map(split, dict(batch)), 'part': indices}


def mean_over_micro_batches(
  fn: Callable[[Batch], Any], batches: Batch, *, unroll: bool
) -> Any:
  """Averages fn over micro-batches, with the activations of only one in memory.

  The batches are those of `split_batch`. `unroll` repeats the program of `fn`
  instead of looping over it.
  """
  count = len(batches['label'])

  def take(index: jax.Array | int) -> Batch:
    return jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), batches
    )

  def add_result(index: jax.Array | int, total: Any) -> Any:
    return jax.tree.map(jnp.add, total, fn(take(index)))

  total = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, take(0))
  )
  if unroll:
    for index in range(count):
      # Start only when the memory of the previous micro-batch is free.
      start, total = lax.optimization_barrier((jnp.int32(index), total))
      total = add_result(start, total)
  else:
    total = lax.fori_loop(0, count, add_result, total)
  return jax.tree.map(lambda x: x / count, total)
