"""What is trained: the network, its loss, its optimizer."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from resnet.data.augment.batch import Augmentation
from resnet.data.augment.crop import ImageOperation
from resnet.training import losses
from resnet.training.accumulation import MOST_UNROLLED_PARTS
from resnet.training.optimizers import create_optimizer
from resnet.training.run_length import RunLength
from resnet.training.schedules import create_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is trained; everything a step needs besides arrays.

  Attributes:
    model: a linen module, (images, *, train) -> logits.
    tx: the optimizer.
    schedule: the learning rate that is in `tx`, to be shown.
    loss_fn: (logits, targets) -> losses [B], for training; see `losses`.
    mean: of each channel, in units of uint8 pixels.
    std: of each channel, likewise.
    accumulation_steps: micro-batches per update (gradient accumulation).
    log_every_steps: updates over which metrics are summed.
    ema_decay: share of the moving averages that their update keeps; None: no
      averages.
    ema_every_steps: updates of the weights per update of the averages.
    device_crop: crop and flip of training images, on the device; None: the host
      has done it.
    augmentation: what else is done to training images, always on the device.
    seed: of everything random in a step.
    sam_rho: distance uphill of the weights at which the gradient is taken;
      None: at the weights.
    unroll_parts: repeat the program of a micro-batch instead of looping: XLA's
      convolutions for the CPU are slow in a loop.
  """

  model: nn.Module
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  loss_fn: losses.LossFn
  mean: tuple[float, ...]
  std: tuple[float, ...]
  accumulation_steps: int
  log_every_steps: int
  ema_decay: float | None = None
  ema_every_steps: int = 1
  device_crop: ImageOperation | None = None
  augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
  seed: int = 0
  sam_rho: float | None = None
  unroll_parts: bool = False

  def normalize(self, images: jax.Array) -> jax.Array:
    """Pixels [B, H, W, C] -> (images - mean) / std, float32."""
    return normalize(images, self.mean, self.std)


def normalize(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Pixels [B, H, W, C] -> (images - mean) / std, float32.

  Args:
    images: of C channels, uint8, or float32 in the same units.
    mean: of each channel, in units of uint8 pixels.
    std: likewise.
  """
  shape = (1, 1, 1, -1)
  mean_ = jnp.asarray(mean, jnp.float32).reshape(shape)
  std_ = jnp.asarray(std, jnp.float32).reshape(shape)
  return (images.astype(jnp.float32) - mean_) / std_


def create_task(
  config: Any, length: RunLength, *, backend: str, **fields: Any
) -> Task:
  """Returns the task of a config.

  Args:
    config: with the fields of configs/default.py.
    length: of the run.
    backend: 'cpu' or another.
    **fields: of `Task` that the config does not determine alone.
  """
  schedule = create_schedule(length, config.schedule)
  parts = config.accumulation_steps
  return Task(
    tx=create_optimizer(
      schedule,
      config.optimizer,
      frozen_stages=config.model.frozen_stages or 0,
    ),
    schedule=schedule,
    loss_fn=losses.create_loss(config.loss),
    accumulation_steps=parts,
    unroll_parts=backend == 'cpu' and parts <= MOST_UNROLLED_PARTS,
    log_every_steps=config.log_every_steps,
    ema_decay=config.ema_decay,
    ema_every_steps=config.ema_every_steps,
    seed=config.seed,
    sam_rho=config.optimizer.sam_rho,
    **fields,
  )
