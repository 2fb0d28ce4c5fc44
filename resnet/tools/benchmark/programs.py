"""Compiles the steps to be timed, and measures the limits of the device."""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet import config as config_lib
from resnet.experiment import Experiment
from resnet.tools.aot import compiled
from resnet.tools.aot.compiled import Compiled
from resnet.tools.aot.topologies import Topology
from resnet.training import metrics

# Side of the matrices and number of floats in `ceilings`.
SIZES = {'cpu': (2048, 2**26)}
_SIZES_OF_ACCELERATORS = (8192, 2**28)
_REPEATS = 3


class Program(NamedTuple):
  """A compiled step with its batch.

  Attributes:
    batch_size: number of images.
    seconds: function: number of steps -> seconds that they take.
    facts: the compiler's figures, if known.
    peak_bytes: the memory measured, if there are no such figures.
  """

  batch_size: int
  seconds: Callable[[int], float]
  facts: Compiled | None = None
  peak_bytes: int | None = None


def resolve_here(config: Any) -> Experiment:
  """Resolves a config for this machine; its data set may be absent."""
  # Without a cache: the batches of a benchmark are on the devices already.
  config = config_lib.changed(config, 'data.cache=None steps_per_call=1')
  here = Topology(name='here', devices=tuple(jax.devices()), chip=None)
  return compiled.prepare(config, here)


def describe_devices(run: Experiment) -> str:
  """Returns the number and the kind of devices, such as '8 x NVIDIA H100'."""
  devices = run.sharding.mesh.devices.flatten()
  return f'{len(devices)} x {devices[0].device_kind}'


def batch_on_device(run: Experiment, subject: str) -> dict[str, jax.Array]:
  """Returns a batch of random images for the step or the evaluation."""
  shape = compiled.abstract_batch(run, subject)['image'].shape
  rng, num_classes = np.random.default_rng(0), run.derived()['num_classes']
  batch = {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': rng.integers(0, num_classes, shape[0], np.int32),
    'mask': np.ones(shape[0], bool),
  }
  return jax.device_put(batch, run.sharding.batch)


def timed(
  advance: Callable[[Any], tuple[Any, Any]], carry: Any
) -> Callable[[int], float]:
  """Returns a function: number of steps -> seconds.

  A step is `advance`: carry -> (carry, result).
  """

  def seconds(count: int) -> float:
    nonlocal carry
    start = time.perf_counter()
    for _ in range(count):
      carry, result = advance(carry)
    jax.block_until_ready((carry, result))
    return time.perf_counter() - start

  return seconds


def ours(run: Experiment, subject: str) -> Program:
  """Returns our update, or our evaluation of a batch."""
  batch, state = batch_on_device(run, subject), run.create_state()
  step, facts = compiled.build_subject(run, subject)
  if subject == 'eval':
    sums = jax.device_put(metrics.zeros(), run.sharding.replicated)
    variables = state.variables
    seconds = timed(lambda sums: (step(variables, sums, batch), None), sums)
  else:
    seconds = timed(lambda state: step(state, batch), state)
  return Program(len(batch['label']), seconds, facts)


def ceilings(run: Experiment) -> dict[str, Callable[[], float]]:
  """Returns functions that measure the FLOP/s and bytes/s of the device."""
  device, dtype = run.sharding.mesh.devices.flat[0], run.task.model.dtype
  side, count = SIZES.get(device.platform, _SIZES_OF_ACCELERATORS)
  multiply = jax.jit(jnp.matmul)
  # Works in place, because new memory costs page faults on a CPU.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  matrix = jax.device_put(jnp.ones((side, side), dtype), device)
  numbers = jax.device_put(jnp.zeros(count, jnp.float32), device)
  product = timed(lambda x: (x, multiply(x, x)), matrix)
  copy = timed(lambda x: (add(x), None), numbers)
  for seconds in (product, copy):
    seconds(1)  # Compiles.
  return {
    'flops_per_second': lambda: 2 * side**3 * _REPEATS / product(_REPEATS),
    'bytes_per_second': lambda: 2 * 4 * count * _REPEATS / copy(_REPEATS),
  }
