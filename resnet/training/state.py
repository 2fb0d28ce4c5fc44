"""The training state: everything that an update changes, in one pytree."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from resnet.training import metrics
from resnet.training.task import Task


class TrainState(struct.PyTreeNode):
  """The contents of a checkpoint.

  Attributes:
    step: number of finished updates, int32 scalar.
    params: float32 parameters of the network.
    batch_stats: float32 running statistics of its batch norms.
    opt_state: state of the Optax optimizer.
    sums: sums of training metrics since the last log line, see
      `training.metrics`. They are saved so that a resumed run logs the same
      lines as an uninterrupted one.
    skipped_steps: number of updates skipped because the loss or a gradient was
      not finite, int32 scalar.
    skipped_in_row: number of skipped updates since the last good one.
    ema: moving averages of 'params' and 'batch_stats'; None if the run keeps
      none.
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
    """The variables for `model.apply`."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  def with_new_ema(self) -> 'TrainState':
    """Returns this state with moving averages that start at its own values."""
    if self.ema is None:
      return self
    # Copy: the step donates the state, and must not donate a buffer twice.
    return self.replace(ema=jax.tree.map(jnp.copy, self.variables))


def create_state(
  key: jax.Array, task: Task, image_shape: tuple[int, ...]
) -> TrainState:
  """Initialises a network for images of `image_shape`, and its optimizer."""
  images = jnp.zeros((1, *image_shape), jnp.float32)
  variables = task.model.init(key, images, train=False)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=task.tx.init(variables['params']),
    sums=metrics.zeros(),
    skipped_steps=jnp.zeros((), jnp.int32),
    skipped_in_row=jnp.zeros((), jnp.int32),
    ema=None if task.ema_decay is None else {},
  ).with_new_ema()


def update_ema(state: TrainState, ema_decay: float, every: int) -> TrainState:
  """Updates the moving averages at each multiple of `every` steps.

    ema = d * ema + (1 - d) * value,  d = min(ema_decay, (1 + n) / (10 + n))

  at the n-th multiple. A smaller decay at first makes the averages forget the
  random initial weights sooner (TensorFlow's ExponentialMovingAverage).
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
