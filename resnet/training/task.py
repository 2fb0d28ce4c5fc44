"""The training task: network, loss, optimizer, augmentation."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet.data.augment.batch import Augmentation
from resnet.data.augment.crop import ImageOperation
from resnet.training import losses
from resnet.training.accumulation import MAX_UNROLLED
from resnet.training.optimizers import create_optimizer
from resnet.training.run_length import RunLength
from resnet.training.schedules import create_schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """The inputs of a training step that are not arrays.

  Attributes:
    model: a linen module, (images, *, train) -> logits.
    tx: the optimizer.
    schedule: learning rate by step, the same as in `tx`, for the metrics.
    loss_fn: (logits, targets) -> losses [B], for training; see `losses`.
    mean: mean of each channel, in units of uint8 pixels.
    std: standard deviation of each channel, in the same units.
    accumulation_steps: micro-batches per update (gradient accumulation).
    log_every_steps: updates over which metrics are summed.
    ema_decay: decay of the moving averages each time they are updated; None:
      the run keeps no averages.
    ema_every_steps: updates of the weights per update of the averages.
    is_cached: batches are indices of an `ImageCache`.
    device_crop: crops and flips training images on the device; None: the host
      does that.
    augmentation: further augmentation of training images, on the device.
    seed: seed of all random numbers of a step.
    sam_rho: distance from the weights at which sharpness-aware minimization
      computes the gradients; None: plain gradients.
    unroll_micro_batches: repeat the program of a micro-batch instead of running
      it in a loop, because XLA's CPU convolutions are slow in a loop.
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
  is_cached: bool = False
  device_crop: ImageOperation | None = None
  augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
  seed: int = 0
  sam_rho: float | None = None
  unroll_micro_batches: bool = False

  def normalize(self, images: jax.Array) -> jax.Array:
    """Returns (images - mean) / std, float32 [B, H, W, C]."""
    return normalize(images, self.mean, self.std)


def normalize(
  images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Returns (images - mean) / std, float32 [B, H, W, C].

  Images, mean and std [C] are in units of uint8 pixels.
  """
  mean_, std_ = np.array([mean, std], np.float32)[:, None, None, None]
  return (images.astype(jnp.float32) - mean_) / std_


def create_task(
  config: Any,
  length: RunLength,
  *,
  backend: str,
  model: Any,
  augmentation: Augmentation,
  **fields: Any,
) -> Task:
  """Creates the task of a config, for the `backend` 'cpu', 'gpu' or 'tpu'.

  The `fields` are those of `Task` that depend on the data.

  Raises:
    InputError: fields of the config contradict each other.
  """
  is_mixed = augmentation.mixing is not None
  losses.check_threshold(config.loss, model.num_classes, is_mixed=is_mixed)
  schedule = create_schedule(length, config.schedule)
  return Task(
    model=model,
    augmentation=augmentation,
    tx=create_optimizer(
      schedule, config.optimizer, frozen_stages=config.model.frozen_stages or 0
    ),
    schedule=schedule,
    loss_fn=losses.create_loss(config.loss),
    accumulation_steps=config.accumulation_steps,
    unroll_micro_batches=backend == 'cpu'
    and config.accumulation_steps <= MAX_UNROLLED,
    log_every_steps=config.log_every_steps,
    ema_decay=config.ema_decay,
    ema_every_steps=config.ema_every_steps,
    seed=config.seed,
    sam_rho=config.optimizer.sam_rho,
    **fields,
  )
