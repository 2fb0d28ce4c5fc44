"""Steps that are ready to run and be timed: ours, Flax's, PyTorch's."""

from collections.abc import Callable, Iterator
import contextlib
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.tools.aot import compiled
from resnet.tools.aot.compiled import Compiled
from resnet.tools.aot.topologies import Topology
from resnet.tools.benchmark import flax_step
from resnet.tools.benchmark.rivals import open_rival
from resnet.training import metrics

# Side of the matrices and number of floats that `ceilings` works on.
SIZES = {'cpu': (2048, 2**26)}
_SIZES_OF_ACCELERATORS = (8192, 2**28)
_REPEATS = 3


class Program(NamedTuple):
  """A step and its batch; `seconds` takes the number of steps to be timed."""

  batch_size: int
  seconds: Callable[[int], float]
  facts: Compiled | None = None


def resolve_here(config: Any) -> Experiment:
  """Resolves a config for the devices at hand; its data need not be here."""
  here = Topology(name='here', devices=tuple(jax.devices()), chip=None)
  return compiled.prepare(config, here)


def describe_devices(run: Experiment) -> str:
  """Returns '8 x NVIDIA H100'."""
  devices = run.sharding.mesh.devices.flatten()
  return f'{len(devices)} x {devices[0].device_kind}'


def batch_on_device(run: Experiment, subject: str) -> dict[str, jax.Array]:
  """Returns random images, as the step or the evaluation takes them."""
  reader, shape = run.train_reader, run.train_image_shape
  if subject == 'eval':
    reader, shape = run.eval_reader, run.eval_image_shape
  rng, size = np.random.default_rng(0), reader.batch_size
  batch = {
    'image': rng.integers(0, 256, (size, *shape), np.uint8),
    'label': rng.integers(0, reader.num_classes, size, np.int32),
    'mask': np.ones(size, bool),
  }
  return jax.device_put(batch, run.sharding.batch)


def timed(
  advance: Callable[[Any], tuple[Any, Any]], carry: Any
) -> Callable[[int], float]:
  """Returns (number of steps) -> seconds; `advance`: carry -> carry, result."""

  def seconds(count: int) -> float:
    nonlocal carry
    start = time.perf_counter()
    for _ in range(count):
      carry, result = advance(carry)
    jax.block_until_ready((carry, result))
    return time.perf_counter() - start

  return seconds


def ours(run: Experiment, subject: str) -> Program:
  """Returns the step of a run, or its evaluation of a batch."""
  batch, state = batch_on_device(run, subject), run.create_state()
  if subject == 'eval':
    step, facts = compiled.build_eval(run)
    sums = jax.device_put(metrics.zeros(), run.sharding.replicated)
    variables = state.variables
    seconds = timed(lambda sums: (step(variables, sums, batch), None), sums)
  else:
    step, facts = compiled.build_train(run)
    seconds = timed(lambda state: step(state, batch), state)
  return Program(len(batch['label']), seconds, facts)


def flax(run: Experiment, subject: str) -> Program:
  """Returns the straightforward step of flax_step.py."""
  jitted = flax_step.jit(run, subject)
  batch, state = batch_on_device(run, subject), run.create_state()
  if subject == 'eval':
    step, facts = compiled.build(jitted, state.variables, batch)
    seconds = timed(lambda x: (x, step(x, batch)), state.variables)
  else:
    trained = (state.params, state.batch_stats, state.opt_state)
    step, facts = compiled.build(jitted, trained, batch)
    seconds = timed(lambda trained: step(trained, batch), trained)
  return Program(len(batch['label']), seconds, facts)


@contextlib.contextmanager
def torch(
  run: Experiment, subject: str, name: str, python: str | None
) -> Iterator[Program]:
  """Yields torchvision's network of the same name, in another process."""
  device, *others = run.sharding.mesh.devices.flatten()
  if others or device.platform not in ('cpu', 'gpu'):
    raise InputError(f'--against={name} is for one CPU or GPU.')
  reader = run.eval_reader if subject == 'eval' else run.train_reader
  options = {
    'subject': subject,
    'compile': name == 'torch-compile',
    'image_shape': run.image_shape,
    'batch_size': reader.batch_size,
    'num_classes': reader.num_classes,
    'device': 'cuda' if device.platform == 'gpu' else 'cpu',
    'mean': run.task.mean,
    'std': run.task.std,
    'config': run.config,
  }
  package = 'torchvision, or none with such a network'
  with open_rival(
    name, 'torch_step.py', [json.dumps(options)], package=package, python=python
  ) as seconds:
    yield Program(reader.batch_size, seconds)


def ceilings(run: Experiment) -> dict[str, Callable[[], float]]:
  """Returns what measures FLOP/s of a matrix product and bytes/s of a copy."""
  device, dtype = run.sharding.mesh.devices.flat[0], run.task.model.dtype
  side, count = SIZES.get(device.platform, _SIZES_OF_ACCELERATORS)
  multiply = jax.jit(jnp.matmul)
  # In place: on a CPU fresh memory costs page faults.
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
