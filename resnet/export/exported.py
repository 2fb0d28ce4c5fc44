"""Opens exported folders as networks."""

import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.export import formats
from resnet.files import reading
from resnet.inference import network
from resnet.inference.preprocessing import normalize
from resnet.weights.metadata import to_preprocessing

MANIFEST = 'manifest.json'


def open_network(
  source: str, model: str | None = None, dtype: str = 'float32'
) -> network.Network:
  """Opens an exported folder, or any weights that `read_weights` reads."""
  if os.path.isfile(os.path.join(source, MANIFEST)):
    return open_exported(source)
  return network.create_network(
    network.read_weights(source, model, dtype=dtype, needs_head=False)
  )


def open_exported(folder: str) -> network.Network:
  """Opens an exported folder.

  Raises:
    InputError: it is damaged, or made for another platform.
  """
  path = os.path.join(folder, MANIFEST)
  with reading(f'{path} is damaged'), open(path) as file:
    manifest = json.load(file)
    preprocessing = to_preprocessing(manifest['preprocessing'])
    inside = manifest['input']['preprocessing_inside']
    names = tuple(map(str, manifest['class_names']))
    format_, platforms = manifest['format'], manifest['platforms']
    model_name = str(manifest['model'])
    damaged = []
    for file, checksum in manifest['sha256'].items():
      data = pathlib.Path(folder, os.path.basename(file)).read_bytes()
      if hashlib.sha256(data).hexdigest() != checksum:
        damaged.append(file)
  if damaged or format_ not in formats.NAMES:
    raise InputError(
      f'{folder} is damaged: the format ({format_}) or the SHA-256 of'
      f' {", ".join(damaged) or MANIFEST} is not as expected. Export again.'
    )
  here = formats.current_platform()
  if platforms and here not in platforms:
    raise InputError(f'{folder} is for {", ".join(platforms)}; this is {here}.')
  program = formats.get_format(format_).load(folder)

  def run(outputs: tuple[str, ...], images: np.ndarray) -> dict[str, Any]:
    pixels = images if inside else normalize(jnp.asarray(images), preprocessing)
    logits = jnp.asarray(program(pixels))
    results = {'logits': logits, 'probabilities': jax.nn.softmax(logits)}
    return {name: results[name] for name in outputs}

  def compile_(batch_size: int, outputs: tuple[str, ...]) -> network.Function:
    # The first call compiles the program.
    run(outputs, np.zeros((batch_size, *preprocessing.image_shape), np.uint8))
    return functools.partial(run, outputs)

  return network.Network(
    name=folder,
    model_name=model_name,
    preprocessing=preprocessing,
    class_names=names,
    outputs=('logits', 'probabilities'),
    compile=compile_,
  )
