"""Loops over blocks that are equal but for their variables."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

_COLLECTIONS = ('params', 'batch_stats')
_STACKED = 'stacked_blocks'


def scan_blocks(
  network: nn.Module,
  create_block: Callable[..., nn.Module],
  x: jax.Array,
  names: list[str],
) -> jax.Array:
  """Applies blocks one after the other, but traces and compiles one.

  To be called in the network's compact method. The variables of the network
  stay what they would be with a call per block: only within this function
  those of the blocks are stacked, [len(names), ...].

  Args:
    network: which the blocks are part of.
    create_block: (*, name) -> a block; its output has the shape of its input.
    x: input of the first block.
    names: of the blocks in the network, in order; at least one.
  """

  def stack(variables: Any) -> Any:
    return {
      collection: {
        _STACKED: jax.tree.map(
          lambda *leaves: jnp.stack(leaves), *(tree[n] for n in names)
        )
      }
      for collection, tree in variables.items()
      if all(n in tree for n in names)
    }

  def unstack(variables: Any) -> Any:
    return {
      collection: {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], tree[_STACKED])
        for i, name in enumerate(names)
      }
      for collection, tree in variables.items()
      if tree
    }

  def loop(_: nn.Module, x: jax.Array) -> jax.Array:
    scanned = nn.scan(
      lambda block, x, _: (block(x), None),
      variable_axes=dict.fromkeys(_COLLECTIONS, 0),
      split_rngs={'params': True},
      length=len(names),
    )
    return scanned(create_block(name=_STACKED), x, None)[0]

  return nn.map_variables(
    loop,
    _COLLECTIONS,
    trans_in_fn=stack,
    trans_out_fn=unstack,
    init=network.is_initializing(),
    mutable=True,
  )(network, x)
