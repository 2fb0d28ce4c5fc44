"""Lookahead (Zhang et al. 2019, Algorithm 1) as the last link of a chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class LookaheadState(NamedTuple):
  """What lookahead keeps besides the weights, which are the fast ones.

  Attributes:
    count: finished updates, int32 scalar.
    slow: the slow weights, float32, a tree like the parameters.
  """

  count: jax.Array
  slow: Any


def lookahead(num_steps: int, share: float) -> optax.GradientTransformation:
  """Every `num_steps` updates, goes back to between there and before.

    slow += share * (fast - slow),  fast = slow

  where fast is what the optimizer made of the parameters. It is
  `optax.lookahead` with the slow weights in its state, so that the parameters
  are a tree as any other: the fast weights, and every `num_steps` the slow.

  Args:
    num_steps: k in the paper.
    share: alpha in the paper.
  """

  def init(params: Any) -> LookaheadState:
    # Copies: the step donates the state, and no buffer may be given twice.
    slow = jax.tree.map(jnp.copy, params)
    return LookaheadState(jnp.zeros((), jnp.int32), slow)

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, LookaheadState]:
    count = state.count + 1
    is_last = count % num_steps == 0
    moved = jax.tree.map(
      lambda slow, param, update: slow + share * (param + update - slow),
      state.slow,
      params,
      updates,
    )

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
      return jnp.where(is_last, new, old)

    updates = jax.tree.map(
      lambda new, param, update: choose(new - param, update),
      moved,
      params,
      updates,
    )
    slow = jax.tree.map(choose, moved, state.slow)
    return updates, LookaheadState(count, slow)

  return optax.GradientTransformation(init, update)


def begin_at(opt_state: Any, params: Any) -> Any:
  """Returns the state of an optimizer with `params` as its slow weights.

  To be called where weights are put into a fresh state; other optimizers keep
  no copy of them, and their state is returned as it is.
  """

  def begin(state: Any) -> Any:
    if not isinstance(state, LookaheadState):
      return state
    return state._replace(slow=jax.tree.map(jnp.copy, params))

  return jax.tree.map(
    begin, opt_state, is_leaf=lambda x: isinstance(x, LookaheadState)
  )
