"""Exported folders, opened as networks."""

from collections.abc import Callable
import functools
import hashlib
import json
import os
from typing import Any

from flax import traverse_util
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from resnet.errors import InputError
from resnet.export import onnx
from resnet.inference.network import (
  Function,
  Network,
  create_network,
  read_weights,
)
from resnet.inference.preprocessing import normalize
from resnet.weights import Preprocessing

MANIFEST = 'manifest.json'
FILES = {'stablehlo': 'model.stablehlo', 'onnx': 'model.onnx'}
WEIGHTS = 'weights.safetensors'


def open_network(
  source: str, model: str | None = None, dtype: str = 'float32'
) -> Network:
  """Opens a folder that `export` wrote, or weights as `read_weights` does."""
  if os.path.isfile(os.path.join(source, MANIFEST)):
    return open_exported(source)
  return create_network(read_weights(source, model, dtype=dtype))


def load_program(folder: str, format_: str) -> Callable[[Any], Any]:
  """Returns the function in a folder, images [B, S, S, C] -> logits [B, K].

  Raises:
    InputError: a file is damaged, or a package is missing.
  """
  path = os.path.join(folder, FILES[format_])
  if format_ == 'onnx':
    return onnx.load_onnx(path)
  try:
    with open(path, 'rb') as file:
      exported = jax_export.deserialize(bytearray(file.read()))
    flat = safetensors.numpy.load_file(os.path.join(folder, WEIGHTS))
  except Exception as error:  # Of many kinds.
    raise InputError(f'{path} is no StableHLO program: {error}') from None
  variables = jax.device_put(traverse_util.unflatten_dict(flat, sep='/'))
  return functools.partial(jax.jit(exported.call), variables)


def open_exported(folder: str) -> Network:
  """Opens what `export` wrote.

  Raises:
    InputError: it is damaged, for other platforms, or needs a package.
  """
  path = os.path.join(folder, MANIFEST)
  try:
    with open(path) as file:
      manifest = json.load(file)
    fields = manifest['preprocessing']
    preprocessing = Preprocessing(
      **{**fields, 'mean': tuple(fields['mean']), 'std': tuple(fields['std'])}
    )
    format_, inside = (
      manifest['format'],
      manifest['input']['preprocessing_inside'],
    )
    names = tuple(map(str, manifest['class_names']))
    damaged = [
      file
      for file, checksum in manifest['sha256'].items()
      if _checksum(os.path.join(folder, os.path.basename(file))) != checksum
    ]
    platforms = manifest['platforms']
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
  ) as error:
    raise InputError(f'{path} is damaged: {error!r}.') from None
  if damaged or format_ not in FILES:
    raise InputError(
      f'{folder} is not what was exported: {", ".join(damaged) or format_} has'
      f' not the SHA-256 that {MANIFEST} says.'
    )
  backend = jax.default_backend().replace('gpu', 'cuda')
  if platforms and backend not in platforms:
    raise InputError(
      f'{folder} is for {", ".join(platforms)}; this is {backend}.'
    )
  program = load_program(folder, format_)

  def compile_(batch_size: int, outputs: tuple[str, ...]) -> Function:
    run = functools.partial(_run, program, preprocessing, inside, outputs)
    # The first call compiles.
    run(np.zeros((batch_size, *network.image_shape), np.uint8))
    return run

  network = Network(
    name=folder,
    preprocessing=preprocessing,
    class_names=names,
    outputs=('logits', 'probabilities'),
    compile=compile_,
  )
  return network


def _checksum(path: str) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _run(
  program: Callable[[Any], Any],
  preprocessing: Preprocessing,
  inside: bool,
  outputs: tuple[str, ...],
  images: np.ndarray,
) -> dict[str, Any]:
  pixels = images if inside else normalize(jnp.asarray(images), preprocessing)
  logits = jnp.asarray(program(pixels))
  results = {'logits': logits, 'probabilities': jax.nn.softmax(logits)}
  return {name: results[name] for name in outputs}
