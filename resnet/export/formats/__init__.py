"""The formats of exported networks: a module each, found by its name.

A module has

  convert(program) -> the files of a folder, bytes by name
  load(folder) -> a function from images to logits, NumPy or JAX arrays
  TOLERANCE: the largest difference on a CPU, as a share of the largest logit
  PACKAGES: besides JAX and Flax, whose versions matter
  PLATFORMS: those that it may be made for; () where the file is for any
  HELP: what it needs, for the command line; '' for nothing
"""

import importlib
import pkgutil
from typing import Any

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))


def get_format(name: str) -> Any:
  """Returns the module of a format, one of `NAMES`."""
  return importlib.import_module(f'{__name__}.{name}')
