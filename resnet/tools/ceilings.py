"""What a device can do at most: a large matrix product, a large copy."""

from collections.abc import Callable
import time
from typing import Any

import jax
import jax.numpy as jnp

# Side of the matrices, and bytes that are copied.
_SIDE = {'cpu': 2048}
_COPY_BYTES = {'cpu': 2**28}


def ceilings(device: Any, dtype: Any) -> dict[str, Callable[[], float]]:
  """Returns what measures 'flops_per_second' and 'bytes_per_second' once.

  Args:
    device: of JAX.
    dtype: of the matrices, that of the step.
  """
  side = _SIDE.get(device.platform, 8192)
  size = _COPY_BYTES.get(device.platform, 2**30) // 4
  a = jax.device_put(jnp.ones((side, side), dtype), device)
  x = jax.device_put(jnp.zeros(size, jnp.float32), device)
  product = _timed(jax.jit(jnp.matmul), a, a)
  # Not itself: XLA would hand back the same memory.
  copy = _timed(jax.jit(lambda x: x + 1), x)
  return {
    'flops_per_second': lambda: 2 * side**3 / product(),
    'bytes_per_second': lambda: 2 * x.nbytes / copy(),
  }


def _timed(function: Any, *args: jax.Array) -> Callable[[], float]:
  jax.block_until_ready(function(*args))

  def seconds() -> float:
    repeats = 3
    start = time.perf_counter()
    for _ in range(repeats):
      result = function(*args)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats

  return seconds
