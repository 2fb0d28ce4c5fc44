"""The devices that JAX finds."""

import os
from typing import Any

import jax

from resnet.errors import InputError


def devices() -> list[Any]:
  """Returns the devices of all processes.

  Raises:
    InputError: JAX cannot use its default backend or that of $JAX_PLATFORMS.
  """
  try:
    return jax.devices()
  # JAX fails an assertion if the only backend that it may use is missing.
  except (RuntimeError, AssertionError) as error:
    reason = str(error).splitlines()[0] if str(error) else 'it is missing'
    what, remedy = 'its devices', ''
    if asked := os.environ.get('JAX_PLATFORMS'):
      what = f'the backend {asked!r} of $JAX_PLATFORMS'
      remedy = " install it, for example with `pip install 'jax[cuda13]'`, or"
    raise InputError(
      f'JAX cannot use {what} ({reason}):{remedy} type JAX_PLATFORMS=cpu before'
      ' the command.'
    ) from None
