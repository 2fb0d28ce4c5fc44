"""ONNX by jax2onnx, an optional extra."""

import logging
import types
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError

INSTALL = 'pip install --no-deps -r requirements-onnx.txt'


def pad_and_max_pool(x: jax.Array) -> jax.Array:
  """`layers.stem_max_pool` in two steps: jax2onnx drops explicit padding."""
  pads = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, pads, constant_values=-jnp.inf)
  return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding='VALID')


def exportable(model: Any) -> Any:
  """Returns a network of the same variables and results that jax2onnx knows."""
  changes = {}
  if hasattr(model, 'conv_backend'):
    # A convolution is one to ONNX, whatever its kernel; and a loop is many.
    changes = {'conv_backend': 'xla', 'scan_blocks': False}
  if getattr(model, 'stem_pool', None):
    changes['stem_pool'] = pad_and_max_pool
  return model.clone(**changes)


def to_onnx(function: Any, shape: tuple[int, ...], dtype: Any) -> bytes:
  """Converts images [batch, *shape] -> logits, for any batch.

  Args:
    function: of one array.
    shape: [H, W, C] of an image.
    dtype: of the images.

  Returns:
    The bytes of an .onnx file; its input is 'images', its output 'logits'.

  Raises:
    InputError: jax2onnx is not installed, or fails.
  """
  try:
    import jax2onnx  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(f'ONNX needs packages ({error}): {INSTALL}') from None
  logging.getLogger('onnx_ir').setLevel(logging.ERROR)
  images: Any = types.SimpleNamespace(
    shape=('batch', *shape), dtype=np.dtype(dtype)
  )
  try:
    proto: Any = jax2onnx.to_onnx(
      function,
      [images],
      model_name='resnet',
      input_names=['images'],
      output_names=['logits'],
    )
  except Exception as error:  # Of many kinds.
    raise InputError(
      f'jax2onnx cannot convert this network: {type(error).__name__}: {error}'
    ) from error
  return proto.SerializeToString()


def load_onnx(path: str) -> Any:
  """Returns a function from images to logits, NumPy arrays.

  Raises:
    InputError: onnxruntime is not installed, or does not take the file.
  """
  try:
    import onnxruntime  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise InputError(
      f'{path} needs onnxruntime: pip install onnxruntime'
    ) from None
  try:
    session = onnxruntime.InferenceSession(
      path, providers=['CPUExecutionProvider']
    )
  except Exception as error:
    raise InputError(f'{path} is no ONNX file: {error}') from None

  def run(images: np.ndarray) -> Any:
    return session.run(['logits'], {'images': np.asarray(images)})[0]

  return run
