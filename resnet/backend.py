"""The devices that JAX finds."""

import os
from typing import Any

import jax

from resnet.errors import InputError


def devices() -> list[Any]:
  """Returns the devices of all processes.

  Raises:
    InputError: JAX cannot use the backend that it was told to use.
  """
  try:
    return jax.devices()
  # JAX asserts where the only backend that it may try is not there.
  except (RuntimeError, AssertionError) as error:
    asked = os.environ.get('JAX_PLATFORMS', '')
    reason = str(error).splitlines()[0] if str(error) else 'it is not there'
    raise InputError(
      f'JAX cannot use the backend {asked!r} of $JAX_PLATFORMS ({reason}):'
      " install it, such as `pip install 'jax[cuda13]'`, or type"
      ' JAX_PLATFORMS=cpu before the command.'
    ) from None
