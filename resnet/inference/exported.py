"""Exported folders, opened as networks."""

from collections.abc import Callable
import functools
import hashlib
import json
import os
from typing import Any

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.inference import onnx
from resnet.inference.network import Function, Network
from resnet.inference.preprocessing import normalize
from resnet.models.weights import Preprocessing

MANIFEST = 'manifest.json'


def is_exported(path: str) -> bool:
  """Whether a path is a folder that `export` wrote."""
  return os.path.isfile(os.path.join(path, MANIFEST))


def load_program(path: str, format_: str) -> Callable[[Any], Any]:
  """Returns the function in a file, images [B, S, S, C] -> logits [B, K].

  Raises:
    InputError: the file is damaged, or a package is missing.
  """
  if format_ == 'onnx':
    return onnx.load_onnx(path)
  try:
    with open(path, 'rb') as file:
      exported = jax_export.deserialize(bytearray(file.read()))
  except Exception as error:  # Of many kinds.
    raise InputError(f'{path} is no StableHLO program: {error}') from None
  return jax.jit(exported.call)


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
    program_path = os.path.join(folder, os.path.basename(manifest['file']))
    with open(program_path, 'rb') as file:
      checksum = hashlib.sha256(file.read()).hexdigest()
    is_whole = checksum == manifest['sha256']
    platforms = manifest['platforms']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f'{path} is damaged: {error!r}.') from None
  if not is_whole:
    raise InputError(
      f'{program_path} is not the file that was exported: its SHA-256 is'
      f' {checksum}, not the one in {MANIFEST}.'
    )
  backend = jax.default_backend().replace('gpu', 'cuda')
  if platforms and backend not in platforms:
    raise InputError(
      f'{folder} is for {", ".join(platforms)}; this is {backend}.'
    )
  program = load_program(program_path, format_)

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
