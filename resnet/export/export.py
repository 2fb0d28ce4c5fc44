"""Networks for other programs: StableHLO and ONNX, checked by running them.

An exported folder holds the program, the weights (inside of ONNX, beside
StableHLO), and `manifest.json`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from typing import Any

from flax import traverse_util
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from resnet.errors import InputError, RunError
from resnet.export import onnx
from resnet.export.exported import FILES, MANIFEST, WEIGHTS, load_program
from resnet.files import write_atomically
from resnet.inference.network import Weights

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')

# Batches that are compared, and the largest difference that is let pass, as a
# share of the largest logit. On a CPU, StableHLO must give the same bits.
_BATCHES = (1, 7)
_TOLERANCE = 1e-5
_PACKAGES = ('jax', 'jaxlib', 'flax', 'jax2onnx', 'onnx', 'onnxruntime')


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
    format_: 'stablehlo' or 'onnx'.
    platforms: that StableHLO is for, of `PLATFORMS`.
    with_preprocessing: take uint8 pixels, not normalised float32 ones.

  Returns:
    The manifest.

  Raises:
    InputError: the folder is there or cannot be made, a platform is unknown,
      or a package is missing.
    RunError: the export does not compute what the network computes.
  """
  _check(folder, format_, platforms)
  weights = _for_platforms(weights, platforms)
  parent, name = os.path.split(os.path.abspath(folder))
  try:
    scratch = tempfile.mkdtemp(dir=parent, prefix=f'.{name}.')
  except OSError as error:
    raise InputError(f'{folder} cannot be made: {error.strerror}.') from None
  try:
    make = _to_stablehlo if format_ == 'stablehlo' else _to_onnx
    files = make(weights, platforms, with_preprocessing)
    for file, data in files.items():
      write_atomically(os.path.join(scratch, file), data)
    manifest = {
      **_describe(weights, format_, platforms, with_preprocessing),
      'sha256': {
        file: hashlib.sha256(data).hexdigest() for file, data in files.items()
      },
      # Of the files, as whoever gets them will read them.
      'largest_relative_difference': compare(
        weights, load_program(scratch, format_), format_, with_preprocessing
      ),
    }
    write_atomically(
      os.path.join(scratch, MANIFEST), json.dumps(manifest, indent=2) + '\n'
    )
    os.chmod(scratch, 0o755)
    os.rename(scratch, folder)
  except BaseException:
    shutil.rmtree(scratch, ignore_errors=True)
    raise
  return manifest


def _check(folder: str, format_: str, platforms: Sequence[str]) -> None:
  if os.path.lexists(folder):
    raise InputError(f'{folder} is there already: name a new --out.')
  if format_ != 'stablehlo':
    return
  for platform in platforms:
    if platform not in PLATFORMS:
      raise InputError(
        f'--platforms has {platform!r}, none of {", ".join(PLATFORMS)}.'
      )
  backend = _backend()
  if backend not in platforms:
    raise InputError(
      f'An export is run here before it is declared done, so --platforms needs'
      f' {backend!r} too.'
    )


def _for_platforms(weights: Weights, platforms: Sequence[str]) -> Weights:
  """Returns the network with the convolutions that suit the platforms.

  The network's own choice, made for the machine that exports, is a matrix
  product on a CPU.
  """
  if set(platforms) == {_backend()} or not hasattr(
    weights.model, 'conv_backend'
  ):
    return weights
  return dataclasses.replace(
    weights, model=weights.model.clone(conv_backend='xla')
  )


def _backend() -> str:
  backend = jax.default_backend()
  return 'cuda' if backend == 'gpu' else backend


def _apply(
  weights: Weights, model: Any, with_preprocessing: bool
) -> Callable[[Any, Any], Any]:
  """Returns a function from variables and images to logits."""
  if with_preprocessing:
    return dataclasses.replace(weights, model=model).logits
  return functools.partial(model.apply, train=False)


def _input(weights: Weights, with_preprocessing: bool) -> tuple[Any, Any]:
  size, mean = weights.preprocessing.image_size, weights.preprocessing.mean
  dtype = jnp.uint8 if with_preprocessing else jnp.float32
  return (size, size, len(mean)), dtype


def _to_stablehlo(
  weights: Weights, platforms: Sequence[str], with_preprocessing: bool
) -> dict[str, bytes]:
  """Returns the program, and the weights: they are arguments of it.

  Of constants XLA would work out what it can at compile time, with another
  rounding than that of the network.
  """
  (height, width, channels), dtype = _input(weights, with_preprocessing)
  shape = jax_export.symbolic_shape(f'batch, {height}, {width}, {channels}')
  variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights.variables
  )
  function = _apply(weights, weights.model, with_preprocessing)
  exported = jax_export.export(jax.jit(function), platforms=platforms)(
    variables, jax.ShapeDtypeStruct(shape, dtype)
  )
  flat = traverse_util.flatten_dict(weights.variables, sep='/')
  return {
    FILES['stablehlo']: bytes(exported.serialize()),
    WEIGHTS: safetensors.numpy.save(
      {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    ),
  }


def _to_onnx(
  weights: Weights, platforms: Sequence[str], with_preprocessing: bool
) -> dict[str, bytes]:
  del platforms  # ONNX knows none.
  shape, dtype = _input(weights, with_preprocessing)
  model = onnx.exportable(weights.model)
  apply = functools.partial(
    _apply(weights, model, with_preprocessing), weights.variables
  )
  return {FILES['onnx']: onnx.to_onnx(apply, shape, dtype)}


def _describe(
  weights: Weights,
  format_: str,
  platforms: Sequence[str],
  with_preprocessing: bool,
) -> dict[str, Any]:
  shape, dtype = _input(weights, with_preprocessing)
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue  # An optional one.
  return {
    'format': format_,
    'model': weights.model_name,
    'platforms': list(platforms) if format_ == 'stablehlo' else None,
    'input': {
      'name': 'images',
      'shape': ['batch', *shape],
      'dtype': np.dtype(dtype).name,
      'preprocessing_inside': with_preprocessing,
    },
    'output': {
      'name': 'logits',
      'shape': ['batch', len(weights.class_names)],
      'dtype': 'float32',
    },
    'preprocessing': dataclasses.asdict(weights.preprocessing),
    'class_names': list(weights.class_names),
    'moving_averages': weights.ema,
    'versions': versions,
  }


def compare(
  weights: Weights,
  program: Callable[[Any], Any],
  format_: str,
  with_preprocessing: bool,
) -> dict[str, float]:
  """Runs a program beside the network, on random images.

  Returns:
    The largest difference of logits as a share of the largest logit, by batch
    size.

  Raises:
    RunError: it is too large.
  """
  shape, _ = _input(weights, with_preprocessing)
  rng = np.random.default_rng(0)
  ours = jax.jit(_apply(weights, weights.model, with_preprocessing))
  exact = format_ == 'stablehlo' and jax.default_backend() == 'cpu'
  differences = {}
  for batch in _BATCHES:
    if with_preprocessing:
      images: Any = rng.integers(0, 256, (batch, *shape), np.uint8)
    else:
      images = rng.standard_normal((batch, *shape), np.float32)
    expected = np.asarray(ours(weights.variables, images))
    result = np.asarray(program(images))
    if result.shape != expected.shape:
      raise RunError(
        f'The export gives logits {list(result.shape)}, the network'
        f' {list(expected.shape)}: it is not kept.'
      )
    largest = max(float(np.abs(expected).max()), float(np.finfo('f4').tiny))
    difference = float(np.abs(result - expected).max()) / largest
    if not difference <= (0.0 if exact else _TOLERANCE):
      raise RunError(
        f'The logits of the export are not those of the network: at batch'
        f' {batch} they differ by {difference:.1e} of the largest one. It is'
        ' not kept.'
      )
    differences[str(batch)] = difference
  return differences
