"""ONNX, written by jax2onnx, an optional extra."""

from collections.abc import Callable
import functools
import logging
import os
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.export.formats import Program, import_package
from resnet.files import reading
from resnet.models import pooling

INSTALL = 'pip install --no-deps -r requirements-onnx.txt'
HELP = f'onnx needs: {INSTALL}'
TOLERANCE = 1e-5
PACKAGES = ('jax2onnx', 'onnx', 'onnxruntime')
PLATFORMS = ()
_FILE = 'model.onnx'


def pad_and_max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
  """Computes `pooling.stem_max_pool` in two steps.

  jax2onnx drops the explicit padding of a pooling layer, so this pads first.
  """
  pads = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, pads, constant_values=-jnp.inf)
  return nn.max_pool(
    x, window_shape=(3, 3), strides=(stride, stride), padding='VALID'
  )


_POOLS: dict[Any, Any] = {
  pooling.stem_max_pool: lambda x, **_: pad_and_max_pool(x),
  pooling.stem_blur_pool: lambda x, **_: pooling.blur_pool(
    pad_and_max_pool(x, 1)
  ),
}


def convert(program: Program) -> dict[str, bytes]:
  """Returns the ONNX file, with input 'images' and output 'logits'."""
  jax2onnx = import_package('jax2onnx', INSTALL)
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  model = program.weights.model
  if hasattr(model, 'conv_backend'):
    # Export each convolution as one operator, and blocks without a loop.
    program = program.with_fields(conv_backend='xla', scan_blocks=False)
  if pool := _POOLS.get(getattr(model, 'stem_pool', None)):
    program = program.with_fields(stem_pool=pool)
  images: Any = types.SimpleNamespace(
    shape=('batch', *program.shape), dtype=np.dtype(program.dtype)
  )
  try:
    proto = jax2onnx.to_onnx(
      functools.partial(program.logits, program.weights.variables),
      [images],
      model_name='resnet',
      input_names=['images'],
      output_names=['logits'],
    )
  except Exception as error:  # jax2onnx raises errors of many types.
    raise InputError(
      f'jax2onnx cannot convert this network: {type(error).__name__}: {error}'
    ) from error
  return {_FILE: proto.SerializeToString()}


def load(folder: str) -> Callable[[Any], Any]:
  """Loads the network in an exported folder, as a function images -> logits."""
  path = os.path.join(folder, _FILE)
  onnxruntime = import_package('onnxruntime', 'pip install onnxruntime')
  with reading(f'{path} is not an ONNX file', Exception):
    session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider']
    )
  return lambda x: session.run(['logits'], {'images': np.asarray(x)})[0]
