"""Everything that training changes, in one pytree."""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import optax

from resnet.training import metrics


class TrainState(struct.PyTreeNode):
  """What a checkpoint holds.

  Attributes:
    step: finished updates, int32 scalar.
    params: float32 parameters of the network.
    batch_stats: float32 running statistics of its batch norms.
    opt_state: of the Optax optimizer.
    sums: training metrics since the last log line (see `training.metrics`);
      part of the state so that a resumed run writes the lines it would have
      written.
    skipped_steps: updates that were left out, because loss or gradients were
      not finite, int32 scalar.
    skipped_in_row: of these, those since the last good one.
    ema: exponential moving averages of 'params' and 'batch_stats'; None where
      none are kept.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState
  sums: metrics.Sums
  skipped_steps: jax.Array
  skipped_in_row: jax.Array
  ema: Any = None

  @property
  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  def with_new_ema(self) -> 'TrainState':
    """Returns this state with averages that begin at its own values."""
    if self.ema is None:
      return self
    # Copies: the step donates the state, and no buffer may be given twice.
    return self.replace(ema=jax.tree.map(jnp.copy, self.variables))


def create_state(
  key: jax.Array,
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  has_ema: bool = False,
) -> TrainState:
  """Initialises the network for images [H, W, C] and the optimizer."""
  images = jnp.zeros((1, *image_shape), jnp.float32)
  variables = model.init(key, images, train=False)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=tx.init(variables['params']),
    sums=metrics.zeros(),
    skipped_steps=jnp.zeros((), jnp.int32),
    skipped_in_row=jnp.zeros((), jnp.int32),
    ema={} if has_ema else None,
  )
  return state.with_new_ema()


def update_ema(state: TrainState, ema_decay: float, every: int) -> TrainState:
  """Moves the averages towards the weights, faster at first.

    ema = d * ema + (1 - d) * value,  d = min(decay, (1 + n) / (10 + n))

  at the n-th multiple of `every`, so that the first, random weights
  are soon forgotten (TensorFlow's ExponentialMovingAverage).
  """
  n = (state.step // every).astype(jnp.float32)
  decay = jnp.minimum(ema_decay, (1.0 + n) / (10.0 + n))
  decay = jnp.where(state.step % every == 0, decay, 1.0)
  ema = jax.tree.map(
    lambda mean, value: decay * mean + (1.0 - decay) * value,
    state.ema,
    state.variables,
  )
  return state.replace(ema=ema)
