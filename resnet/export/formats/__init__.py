"""The formats of exported networks, each a module with the name of the format.

A module defines

  convert(program): returns the files of the export, bytes by name
  load(folder): returns a function from images to logits, NumPy or JAX arrays
  TOLERANCE: largest accepted difference on a CPU, as a share of the largest
    logit
  PACKAGES: packages besides JAX and Flax whose versions the manifest records
  PLATFORMS: platforms that an export can be made for; () if it runs on any
  HELP: text for --help that says what to install; '' if nothing
"""

import dataclasses
import importlib
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp

from resnet.errors import InputError
from resnet.inference.network import Weights

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))


def get_format(name: str) -> Any:
  """Returns the module of a format in `NAMES`."""
  return importlib.import_module(f'{__name__}.{name}')


def import_package(name: str, install: str) -> Any:
  """Imports an optional package; an InputError says how to install it."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise InputError(
      f'This format needs {name} ({error}). Install it with: {install}'
    ) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A network as other programs call it: images [B, H, W, C] -> logits [B, K].

  Attributes:
    weights: weights of the network.
    with_preprocessing: take uint8 pixels instead of normalised float32 ones.
    platforms: JAX's names of the platforms to run on: 'cpu', 'cuda', 'tpu', ...
  """

  weights: Weights
  with_preprocessing: bool
  platforms: tuple[str, ...]

  @property
  def shape(self) -> tuple[int, int, int]:
    """[H, W, C] of the images."""
    return self.weights.preprocessing.image_shape

  @property
  def dtype(self) -> Any:
    """The dtype of the images."""
    return jnp.uint8 if self.with_preprocessing else jnp.float32

  def logits(self, variables: Any, images: jax.Array) -> jax.Array:
    """Computes the logits of images with the given variables."""
    if self.with_preprocessing:
      return self.weights.logits(variables, images)
    return self.weights.model.apply(variables, images, train=False)

  def with_fields(self, **fields: Any) -> 'Program':
    """Returns this program with some fields of the linen module replaced."""
    model = self.weights.model.clone(**fields)
    weights = dataclasses.replace(self.weights, model=model)
    return dataclasses.replace(self, weights=weights)


def current_platform() -> str:
  """Returns the platform of JAX's default backend, with 'cuda' for 'gpu'."""
  return jax.default_backend().replace('gpu', 'cuda')
