"""Exports a network, and checks the export by running it.

An exported folder holds the files of its format and `manifest.json`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from typing import Any

import jax
import numpy as np

from resnet.errors import InputError, RunError
from resnet.export.exported import MANIFEST
from resnet.export.formats import Program, current_platform, get_format
from resnet.files import creating, write_atomically
from resnet.inference.network import Weights

# Batch sizes that are compared, and the largest accepted difference from the
# network as trained, and from the folded one on backends other than the CPU, as
# a share of the largest logit.
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
  """Writes a complete and checked export, or nothing; returns its manifest.

  It creates the folder. The format is one of `formats.NAMES`; the platforms are
  those of a StableHLO export. See `Program` for the other arguments.

  Raises:
    InputError: the folder exists or cannot be created, a platform is unknown,
      or a package is missing.
    RunError: the logits of the export differ from those of the network.
  """
  module, here = get_format(format_), current_platform()
  if module.PLATFORMS:
    if unknown := sorted({*platforms} - {*module.PLATFORMS}):
      known = ', '.join(module.PLATFORMS)
      raise InputError(f'--platforms has {unknown[0]!r}, not one of {known}.')
    if here not in platforms:
      raise InputError(
        f'The export is checked by running it: add {here!r} to --platforms.'
      )
  program = Program(
    weights=weights,
    with_preprocessing=with_preprocessing,
    platforms=tuple(platforms),
  )
  if {*platforms} != {here} and hasattr(weights.model, 'conv_backend'):
    # On a CPU the network would use matrix products, which suit only CPUs.
    program = program.with_fields(conv_backend='xla')
  with creating(folder) as part:
    manifest = {'format': format_, **_write(program, part, module)}
    path = os.path.join(part, MANIFEST)
    write_atomically(path, json.dumps(manifest, indent=2) + '\n')
  return manifest


def _write(program: Program, folder: str, module: Any) -> dict[str, Any]:
  """Writes and checks the files of an export, and returns its manifest."""
  weights = program.weights
  folded = dataclasses.replace(program, weights=weights.folded())
  files = module.convert(folded)
  for file, data in files.items():
    write_atomically(os.path.join(folder, file), data)
  # Run the files that were written, as users will.
  exported, on_cpu = module.load(folder), current_platform() == 'cpu'
  tolerance = module.TOLERANCE if on_cpu else _TOLERANCE
  difference = _compare(folded, exported, tolerance)
  if on_cpu:  # Others may multiply in fewer bits, where folding rounds more.
    difference = _compare(program, exported, _TOLERANCE)
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
    'largest_relative_difference': difference,
  }


def _compare(
  program: Program, exported: Callable[[Any], Any], tolerance: float
) -> dict[str, float]:
  """Compares the logits of an export with the network's, on random images.

  Returns:
    The largest difference by batch size, as a share of the largest logit.

  Raises:
    RunError: a difference is larger than `tolerance`.
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
    largest = max(float(np.abs(expected).max()), float(np.finfo('f4').tiny))
    difference = np.inf
    if result.shape == expected.shape:
      difference = float(np.abs(result - expected).max()) / largest
    if not difference <= tolerance:
      raise RunError(
        f'The logits {result.shape} of the export differ from those of the'
        f' network, {expected.shape}, by {difference:.1e} of the largest one at'
        f' batch size {batch}. The export was deleted.'
      )
    differences[str(batch)] = difference
  return differences
