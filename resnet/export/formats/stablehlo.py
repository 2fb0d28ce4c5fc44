"""StableHLO, written by `jax.export`, with the weights in a second file."""

from collections.abc import Callable
import functools
import os
from typing import Any

from flax import traverse_util
import jax
from jax import export as jax_export
import numpy as np
import safetensors.numpy

from resnet.export.formats import Program
from resnet.files import reading

HELP = ''
# The logits must be equal bit for bit.
TOLERANCE = 0.0
PACKAGES = ()
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
_PROGRAM, _WEIGHTS = 'model.stablehlo', 'weights.safetensors'


def convert(program: Program) -> dict[str, bytes]:
  """Returns the program and the weights, which are arguments of the program.

  If they were constants, XLA would fold operations on them at compile time
  and round differently from the network.
  """
  height, width, channels = program.shape
  shape = jax_export.symbolic_shape(f'batch, {height}, {width}, {channels}')
  variables = program.weights.variables
  exported = jax_export.export(
    jax.jit(program.logits), platforms=program.platforms
  )(variables, jax.ShapeDtypeStruct(shape, program.dtype))
  flat = traverse_util.flatten_dict(variables, sep='/')
  arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
  return {
    _PROGRAM: bytes(exported.serialize()),
    _WEIGHTS: safetensors.numpy.save(arrays),
  }


def load(folder: str) -> Callable[[Any], Any]:
  """Loads an exported folder as a function, images -> logits."""
  path = os.path.join(folder, _PROGRAM)
  failure = f'{path} is not a StableHLO program'
  # JAX raises errors of many types.
  with reading(failure, Exception), open(path, 'rb') as file:
    exported = jax_export.deserialize(bytearray(file.read()))
    flat = safetensors.numpy.load_file(os.path.join(folder, _WEIGHTS))
  variables = jax.device_put(traverse_util.unflatten_dict(flat, sep='/'))
  return functools.partial(jax.jit(exported.call), variables)
