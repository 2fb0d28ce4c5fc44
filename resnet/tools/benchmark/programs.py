"""Steps that are ready to run and be timed: ours, Flax's, PyTorch's."""

from collections.abc import Callable
import dataclasses
import json
import os
import time
from typing import Any

import jax
import numpy as np

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.tools.aot import compiled
from resnet.tools.aot.compiled import Compiled
from resnet.tools.aot.topologies import Topology
from resnet.tools.benchmark import flax_step
from resnet.tools.benchmark.rivals import Rival
from resnet.training import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A step and what it works on.

  Attributes:
    batch_size: images a step.
    seconds: (number of steps) -> what they took.
    facts: what the compiler says; None where nobody asked it.
    hlo: text of the compiled program.
  """

  batch_size: int
  seconds: Callable[[int], float]
  facts: Any
  hlo: str


def prepare_backend(*, shared: bool) -> None:
  """Before JAX begins: nothing comes from a cache, nor is all memory taken.

  Args:
    shared: the device is also another process's.
  """
  jax.config.update('jax_enable_compilation_cache', False)
  if shared:
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def resolve_here(config: Any) -> Experiment:
  """Resolves a config for the devices at hand; its data need not be here."""
  devices = tuple(jax.devices())
  return compiled.prepare(
    config, Topology(name='here', devices=devices, chip=None)
  )


def describe_devices(run: Experiment) -> str:
  """Returns '8 x NVIDIA H100'."""
  devices = run.sharding.mesh.devices.flatten()
  return f'{len(devices)} x {devices[0].device_kind}'


def batch_on_device(run: Experiment, batch_size: int) -> dict[str, jax.Array]:
  """Returns random images, as the step takes them."""
  rng = np.random.default_rng(0)
  shape = (batch_size, *run.image_shape)
  num_classes = run.train_reader.num_classes
  batch = {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': rng.integers(0, num_classes, batch_size, np.int32),
    'mask': np.ones(batch_size, bool),
  }
  return jax.device_put(batch, run.sharding.batch)


def timed(
  advance: Callable[[Any], tuple[Any, Any]], carry: Any
) -> Callable[[int], float]:
  """Returns what times steps, each with what the one before has left."""

  def seconds(count: int) -> float:
    nonlocal carry
    start = time.perf_counter()
    for _ in range(count):
      carry, result = advance(carry)
    jax.block_until_ready((carry, result))
    return time.perf_counter() - start

  return seconds


def ours(run: Experiment, subject: str) -> Program:
  """Returns the step of a run."""
  if subject == 'eval':
    step, facts = compiled.build_eval(run)
    batch = batch_on_device(run, run.eval_reader.batch_size)
    variables = run.create_state().variables
    sums = jax.device_put(metrics.zeros(), run.sharding.replicated)
    seconds = timed(lambda sums: (step(variables, sums, batch), None), sums)
  else:
    step, facts = compiled.build_train(run)
    batch = batch_on_device(run, run.length.batch_size)
    seconds = timed(lambda state: step(state, batch), run.create_state())
  return Program(
    batch_size=len(batch['label']),
    seconds=seconds,
    facts=facts,
    hlo=step.as_text(),
  )


def flax(run: Experiment, subject: str) -> Program:
  """Returns the straightforward step of flax_step.py.

  Raises:
    InputError: it has no such network.
  """
  step = flax_step.jit(run, subject)
  state = run.create_state()
  if subject == 'eval':
    batch = batch_on_device(run, run.eval_reader.batch_size)
    step, facts = compiled.build(step, state.variables, batch)
    seconds = timed(lambda x: (x, step(x, batch)), state.variables)
  else:
    batch = batch_on_device(run, run.length.batch_size)
    trained = (state.params, state.batch_stats, state.opt_state)
    step, facts = compiled.build(step, trained, batch)
    seconds = timed(lambda trained: step(trained, batch), trained)
  return Program(
    batch_size=len(batch['label']),
    seconds=seconds,
    facts=facts,
    hlo=step.as_text(),
  )


class TorchProgram(Rival):
  """torchvision's network of the same name in a process of its own."""

  facts: Compiled | None = None

  def seconds(self, count: int) -> float:
    """Returns what so many steps took."""
    return self.ask(count)


def torch(
  run: Experiment, subject: str, name: str, python: str | None
) -> TorchProgram:
  """Starts `name`: 'torch-eager' or 'torch-compile'.

  Raises:
    InputError: there is no such network, no torchvision, or more devices; or
      torch.compile does not work here, as without a C++ compiler.
  """
  devices = run.sharding.mesh.devices.flatten()
  if len(devices) > 1 or devices[0].platform not in ('cpu', 'gpu'):
    raise InputError(f'--against={name} is for one CPU or GPU.')
  reader = run.eval_reader if subject == 'eval' else run.train_reader
  options = {
    'subject': subject,
    'compile': name == 'torch-compile',
    'network': run.config['model.name'],
    'image_shape': run.image_shape,
    'batch_size': reader.batch_size,
    'num_classes': reader.num_classes,
    'dtype': run.config['model.dtype'],
    'device': 'cuda' if devices[0].platform == 'gpu' else 'cpu',
    'mean': run.task.mean,
    'std': run.task.std,
    'momentum': run.config['optimizer.momentum'],
    'nesterov': run.config['optimizer.nesterov'],
    'weight_decay': run.config['optimizer.weight_decay'],
    'label_smoothing': run.config['loss.label_smoothing'],
  }
  return TorchProgram(
    name,
    'torch_step.py',
    (json.dumps(options),),
    package='torchvision, or none with such a network',
    python=python,
  )
