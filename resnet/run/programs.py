"""Compiled programs: one update for each size of images; kept on disk.

The first update is compiled by its first call. Those of later sizes are
compiled beside the training, in a thread, long before they are needed:
compilation moves nothing between processes, so each may take its own time.
Where XLA tries its kernels out on the device while it compiles, on GPUs,
training waits for it, so that neither takes the other's time or memory.
"""

import hashlib
import os
import platform
import stat
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp

from resnet.experiment import Experiment
from resnet.run.stopping import StopSignal
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


def keep_programs() -> str | None:
  """Lets JAX find the programs of earlier processes; compiles nothing.

  They lie in $JAX_COMPILATION_CACHE_DIR, or else in a private folder under
  $XDG_CACHE_HOME or ~/.cache, one for each kind of processor: programs for a
  CPU fit only that. They are machine code, so a folder that others may write
  to is not used.

  Returns:
    Why they are not kept, as a line to be shown; None where they are.
  """
  config: Any = jax.config  # Environment variables of the same names set it.
  if not config.jax_enable_compilation_cache:
    return None
  folder = config.jax_compilation_cache_dir
  if not folder:
    folder = os.path.join(_cache_home(), 'resnet', f'programs_{_processor()}')
    try:
      os.makedirs(folder, mode=0o700, exist_ok=True)
      found = os.stat(folder)
    except OSError as error:
      return f'Compiled programs are not kept: {folder}: {error.strerror}.'
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if found.st_uid != os.getuid() or others_write:
      return (
        f'Compiled programs are not kept: others may write to {folder}. Remove'
        ' it, or name a private one in JAX_COMPILATION_CACHE_DIR.'
      )
    jax.config.update('jax_compilation_cache_dir', folder)
  # JAX caches only compilations longer than one second; cache all of them.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  return None


def _cache_home() -> str:
  # An empty or relative one counts as none (XDG Base Directory Specification).
  home = os.environ.get('XDG_CACHE_HOME', '')
  return home if os.path.isabs(home) else os.path.expanduser('~/.cache')


def _processor() -> str:
  """Returns a checksum of what the processor can do."""
  text = platform.machine()
  try:
    with open('/proc/cpuinfo') as file:
      text += next((x for x in file if x.startswith(('flags', 'Features'))), '')
  except OSError:
    text += platform.processor()  # Not Linux.
  return hashlib.sha256(text.encode()).hexdigest()[:12]
