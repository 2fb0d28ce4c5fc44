"""The update of each step: one program for each size of images.

The first is compiled by its first call. Those of later sizes are compiled
beside the training, in a thread, long before they are needed: compilation moves
nothing between processes, so each may take its own time. Where XLA tries its
kernels out on the device while it compiles, on GPUs, training waits for it, so
that neither takes the other's time or memory.
"""

import threading
import time
from typing import Any

import jax
import jax.numpy as jnp

from resnet.experiment import Experiment
from resnet.run.signals import StopSignal
from resnet.training.step import jit_steps

_POLL_SECONDS = 0.05


class Programs:
  """Gives the update for a step number.

  Attributes:
    steps: of the first size; `evaluate` is that of the whole run.
  """

  def __init__(self, experiment: Experiment, *, first_step: int):
    self._experiment = experiment
    self._first_size = experiment.sizes.at(first_step)
    self._later_starts = [
      start for start, _ in experiment.sizes.starts if start > first_step
    ]
    self._later: dict[int, Any] = {}  # By size.
    self._error: Exception | None = None
    self._closed = False
    first = experiment.at(first_step)
    self.steps = jit_steps(first.task, first.sharding)

  def compile_later_sizes(self) -> None:
    """Begins to compile for all sizes after the first."""
    if not self._later_starts:
      return
    # No daemon: the interpreter must not end under the compiler.
    thread = threading.Thread(target=self._compile, name='compile later sizes')
    thread.start()
    if self._experiment.sharding.backend == 'gpu':
      thread.join()

  def _compile(self) -> None:
    try:
      for start in self._later_starts:
        if self._closed:
          return
        run = self._experiment.at(start)
        train = jit_steps(run.task, run.sharding).train
        batch = abstract_batch(
          run, run.length.batch_size, run.train_image_shape
        )
        program = train.lower(run.abstract_state(), batch).compile()
        self._later[run.sizes.at(start)] = program
    except Exception as error:  # Whatever the compiler says; see `is_ready`.
      self._error = error

  def is_ready(self, step: int) -> bool:
    """Whether `train(step)` may be called.

    Raises:
      Exception: that of the compiler, even where the size is a later one.
    """
    if self._error:
      raise self._error
    size = self._experiment.sizes.at(step)
    return size == self._first_size or size in self._later

  def wait(self, step: int, stop: StopSignal) -> bool:
    """Waits for `is_ready`; False: a signal to the only process came first."""
    is_alone = jax.process_count() == 1
    while not self.is_ready(step):
      if is_alone and stop.received:
        return False
      time.sleep(_POLL_SECONDS)
    return True

  def train(self, step: int) -> Any:
    """Returns (state, batch) -> (state, metrics) for batch number `step`."""
    size = self._experiment.sizes.at(step)
    return self.steps.train if size == self._first_size else self._later[size]

  def close(self) -> None:
    """Lets the thread end after the program that it is at."""
    self._closed = True


def abstract_batch(
  run: Experiment, batch_size: int, image_shape: tuple[int, int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes, dtypes and sharding of a batch, all devices together."""
  fields = {
    'image': (image_shape, jnp.uint8),
    'label': ((), jnp.int32),
    'mask': ((), jnp.bool_),
  }
  return {
    name: jax.ShapeDtypeStruct(
      (batch_size, *shape), dtype, sharding=run.sharding.batch
    )
    for name, (shape, dtype) in fields.items()
  }
