"""The formats of exported networks, each a module of this name.

A module defines

  convert(program): returns the files of a folder, bytes by name
  load(folder): returns a function from images to logits, NumPy or JAX arrays
  TOLERANCE: largest accepted difference on a CPU, as a share of the largest
    logit
  PACKAGES: packages besides JAX and Flax whose versions the manifest records
  PLATFORMS: platforms that an export can be made for; () if it runs on any
  HELP: what to install, for the command line; '' if nothing
"""

import importlib
import pkgutil
from typing import Any

from resnet.errors import InputError

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
