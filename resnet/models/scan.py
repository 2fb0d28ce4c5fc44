"""Loops over blocks that differ only in their variables."""

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
  """Applies equal blocks one after the other, but traces and compiles only one.

  Call it in a compact method of the network. The variables of the network have
  the same names and shapes as with one call per block: they are stacked,
  [len(names), ...], only within this function. There must be at least one
  name. `create_block` is (*, name) -> block; each block keeps the shape of x.
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
