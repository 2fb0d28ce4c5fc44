"""Compiles the steps of a run for devices that may be absent."""

import dataclasses
import functools
import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resnet.data.augment.cache import ImageCache
from resnet.data.sources.base import Source
from resnet.data.sources.fake import FakeRecords
from resnet.errors import InputError
from resnet.experiment import Experiment, resolve
from resnet.tools.aot import collectives
from resnet.tools.aot.topologies import Topology
from resnet.training import metrics
from resnet.training.step import jit_steps

# Numbers of classes and training images of data sets that may be absent.
_KNOWN_SETS = {
  'imagenet2012': (1000, 1_281_167),
  'cifar10': (10, 50_000),
  'cifar100': (100, 50_000),
}
# The compiler words this error in two ways.
_OUT_OF_MEMORY = re.compile(
  r'(?:Used |\()([\d.]+)([KMG])(?: of |\) exceeds available HBM \()'
  r'([\d.]+)([KMG])'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}


@dataclasses.dataclass(eq=False)
class OutOfMemoryError(Exception):
  """The program needs more memory than a chip has."""

  needed_bytes: float
  hbm_bytes: float


class Compiled(NamedTuple):
  """The compiler's figures for a program on one chip.

  Attributes:
    seconds: compilation time.
    argument_bytes: memory of the arguments.
    temporary_bytes: memory of intermediate results.
    peak_bytes: memory of arguments, temporaries, code, and those results that
      do not reuse the memory of arguments.
    flops: floating-point operations; a multiply-add counts as two.
    accessed_bytes: memory traffic.
    collectives: see `collectives.summarize`.
  """

  seconds: float
  argument_bytes: int
  temporary_bytes: int
  peak_bytes: int
  flops: float
  accessed_bytes: float
  collectives: list[dict[str, Any]]


def prepare(config: Any, topology: Topology) -> Experiment:
  """Resolves a config for a topology; its data set may be absent.

  With scheduled image sizes, returns the experiment at the largest one.
  """
  run = resolve(config, devices=topology.devices, source=_stand_in(config))
  model = run.task.model
  if topology.chip and getattr(model, 'conv_backend', '') is None:
    # None would select the fastest for this machine, not for the topology.
    model = model.clone(conv_backend='xla')
  is_cached = config.data.cache is not None
  task = dataclasses.replace(run.task, model=model, is_cached=is_cached)
  return dataclasses.replace(run, task=task).at_last_size()


def _stand_in(config: Any) -> Source | None:
  """Returns fake images shaped like a known data set; None for other sets."""
  name = config.data.name.partition(':')[0]
  if name not in _KNOWN_SETS:
    return None
  num_classes, length = _KNOWN_SETS[name]
  return Source(
    name=config.data.name,
    split='train',
    num_classes=num_classes,
    channels=3,
    records=FakeRecords(length, stream=0, image_size=1),
    image_shape=(config.data.image_size, config.data.image_size, 3),
  )


def abstract_batch(run: Experiment, subject: str) -> dict[str, Any]:
  """Returns shapes, dtypes and shardings of a global batch.

  The `subject` is 'step' (an update) or 'eval' (an evaluation batch).
  """
  reader, shape = run.train_reader, run.train_image_shape
  if subject == 'eval':
    reader, shape = run.eval_reader, run.eval_image_shape
  size, count = reader.batch_size, len(reader.source)
  batch = {
    'image': jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
    'label': jax.ShapeDtypeStruct((size,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((size,), jnp.bool_),
  }
  batch = {k: x.update(sharding=run.sharding.batch) for k, x in batch.items()}
  if not run.task.is_cached:
    return batch
  whole: Any = functools.partial(
    jax.ShapeDtypeStruct, sharding=run.sharding.replicated
  )
  images = whole((count, math.prod(shape)), jnp.uint8)
  labels = whole((count,), jnp.int32)
  cache = ImageCache(images=images, labels=labels, image_shape=shape)
  return {'index': batch['label'], 'cache': cache}


def build_subject(run: Experiment, subject: str) -> tuple[Any, Compiled]:
  """Returns the compiled update or evaluation and the compiler's figures.

  See `abstract_batch` for the values of `subject`.
  """
  steps, state = jit_steps(run.task, run.sharding), run.abstract_state()
  batch = abstract_batch(run, subject)
  if subject == 'eval':
    sums = jax.eval_shape(metrics.zeros)
    return build(steps.evaluate, state.variables, sums, batch)
  rounds = 1 if run.task.unroll_micro_batches else run.task.accumulation_steps
  return build(steps.train, state, batch, rounds=rounds)


def build(step: Any, *args: Any, rounds: int = 1) -> tuple[Any, Compiled]:
  """Compiles a jitted function for arguments of these shapes.

  XLA's cost analysis counts the body of a loop once; `rounds` is the number of
  iterations of the loop in which the function spends its time.

  Raises:
    OutOfMemoryError: a chip has too little memory.
    InputError: the compiler failed for another reason.
  """
  start, lowered = time.monotonic(), step.lower(*args)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if match := _OUT_OF_MEMORY.search(str(error)):
      needed, unit, limit, limit_unit = match.groups()
      raise OutOfMemoryError(
        float(needed) * _UNITS[unit], float(limit) * _UNITS[limit_unit]
      ) from None
    raise InputError(
      f'The compiler failed: {str(error).strip().splitlines()[0]}'
    ) from error
  seconds = time.monotonic() - start
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  arguments = memory.argument_size_in_bytes
  temporaries = memory.temp_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  code = memory.generated_code_size_in_bytes
  return compiled, Compiled(
    seconds=seconds,
    argument_bytes=arguments,
    temporary_bytes=temporaries,
    peak_bytes=arguments + temporaries + results + code,
    flops=cost['flops'] * rounds,
    accessed_bytes=cost['bytes accessed'] * rounds,
    collectives=collectives.summarize(compiled.as_text()),
  )
