"""Networks for other programs, checked by running them.

An exported folder holds the files of its format and `manifest.json`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
from typing import Any

import jax
import numpy as np

from resnet.errors import InputError, RunError
from resnet.export.exported import MANIFEST
from resnet.export.formats import get_format
from resnet.export.program import Program, current_platform
from resnet.files import write_atomically, writing
from resnet.inference.network import Weights

# Batches that are compared, and the largest difference that is let pass on
# other backends than the CPU, as a share of the largest logit.
_BATCHES = (1, 7)
_TOLERANCE = 1e-5
_PACKAGES = ('jax', 'jaxlib', 'flax')


def export(
  weights: Weights,
  folder: str,
  *,
  format_: str,
  platforms: Sequence[str],
  with_preprocessing: bool,
) -> dict[str, Any]:
  """Writes an exported network, whole and checked, or nothing.

  Args:
    weights: of the network.
    folder: that is made; there must be none.
    format_: one of `formats.NAMES`.
    platforms: that StableHLO is for; see `Program`.
    with_preprocessing: take uint8 pixels, not normalised float32 ones.

  Returns:
    The manifest.

  Raises:
    InputError: the folder exists or cannot be made, a platform is unknown, or
      a package is missing.
    RunError: the export does not compute what the network computes.
  """
  if os.path.lexists(folder):
    raise InputError(f'{folder} is there already: name a new --out.')
  module = get_format(format_)
  for platform in platforms:
    if module.PLATFORMS and platform not in module.PLATFORMS:
      known = ', '.join(module.PLATFORMS)
      raise InputError(f'--platforms has {platform!r}, none of {known}.')
  if module.PLATFORMS and current_platform() not in platforms:
    raise InputError(
      'An export is checked here before it is kept: add'
      f' {current_platform()!r} to --platforms.'
    )
  program = Program(
    weights=weights,
    with_preprocessing=with_preprocessing,
    platforms=tuple(platforms),
  )
  if set(platforms) != {current_platform()} and hasattr(
    weights.model, 'conv_backend'
  ):
    # The network's own choice, made for this machine, is a matrix product on a
    # CPU.
    program = program.with_fields(conv_backend='xla')
  parent, name = os.path.split(os.path.abspath(folder))
  with writing(folder):
    scratch = tempfile.TemporaryDirectory(dir=parent, prefix=f'.{name}.')
  with scratch:
    whole = os.path.join(scratch.name, name)
    os.mkdir(whole)
    manifest = {'format': format_, **_write(program, whole, module)}
    path = os.path.join(whole, MANIFEST)
    write_atomically(path, json.dumps(manifest, indent=2) + '\n')
    os.rename(whole, folder)
  return manifest


def _write(program: Program, folder: str, module: Any) -> dict[str, Any]:
  """Writes the files of an export, compares, and returns the manifest."""
  files = module.convert(program)
  for file, data in files.items():
    write_atomically(os.path.join(folder, file), data)
  is_cpu = jax.default_backend() == 'cpu'
  weights = program.weights
  return {
    'model': weights.model_name,
    'platforms': list(program.platforms) if module.PLATFORMS else None,
    'input': {
      'name': 'images',
      'shape': ['batch', *program.shape],
      'dtype': np.dtype(program.dtype).name,
      'preprocessing_inside': program.with_preprocessing,
    },
    'output': {
      'name': 'logits',
      'shape': ['batch', len(weights.class_names)],
      'dtype': 'float32',
    },
    'preprocessing': dataclasses.asdict(weights.preprocessing),
    'class_names': list(weights.class_names),
    'moving_averages': weights.ema,
    'versions': {
      package: importlib.metadata.version(package)
      for package in (*_PACKAGES, *module.PACKAGES)
    },
    'sha256': {
      file: hashlib.sha256(data).hexdigest() for file, data in files.items()
    },
    # Computed from the files, as their users will load them.
    'largest_relative_difference': _compare(
      program,
      module.load(folder),
      module.TOLERANCE if is_cpu else _TOLERANCE,
    ),
  }


def _compare(
  program: Program, exported: Callable[[Any], Any], tolerance: float
) -> dict[str, float]:
  """Runs an exported program beside the network, on random images.

  Returns the largest difference of logits as a share of the largest logit, by
  batch size; raises RunError where it is too large.
  """
  rng = np.random.default_rng(0)
  ours = jax.jit(program.logits)
  differences = {}
  for batch in _BATCHES:
    shape = (batch, *program.shape)
    if program.with_preprocessing:
      images: Any = rng.integers(0, 256, shape, np.uint8)
    else:
      images = rng.standard_normal(shape, np.float32)
    expected = np.asarray(ours(program.weights.variables, images))
    result = np.asarray(exported(images))
    if result.shape != expected.shape:
      raise RunError(
        f'The export gives logits {list(result.shape)}, the network'
        f' {list(expected.shape)}: it is not kept.'
      )
    largest = max(float(np.abs(expected).max()), float(np.finfo('f4').tiny))
    difference = float(np.abs(result - expected).max()) / largest
    if not difference <= tolerance:
      raise RunError(
        f'The logits of the export are not those of the network: at batch'
        f' {batch} they differ by {difference:.1e} of the largest one. It is'
        ' not kept.'
      )
    differences[str(batch)] = difference
  return differences
