"""What a device can do at most: a large matrix product, a large copy."""

from collections.abc import Callable
import time
from typing import Any

import jax
import jax.numpy as jnp

# Side of the matrices, and bytes that are copied, where they are less than
# those of an accelerator.
SIDE = {'cpu': 2048}
COPY_BYTES = {'cpu': 2**28}
_REPEATS = 3


def ceilings(device: Any, dtype: Any) -> dict[str, Callable[[], float]]:
  """Returns what measures 'flops_per_second' and 'bytes_per_second' once.

  Args:
    device: of JAX.
    dtype: of the matrices, that of the step.
  """
  side = SIDE.get(device.platform, 8192)
  matrix = jax.device_put(jnp.ones((side, side), dtype), device)
  multiply = jax.jit(jnp.matmul)
  size = COPY_BYTES.get(device.platform, 2**30) // 4
  numbers = jax.device_put(jnp.zeros(size, jnp.float32), device)
  # In place: on a CPU fresh memory costs page faults.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def flops_per_second() -> float:
    start = time.perf_counter()
    for _ in range(_REPEATS):
      result = multiply(matrix, matrix)
    jax.block_until_ready(result)
    return 2 * side**3 * _REPEATS / (time.perf_counter() - start)

  def bytes_per_second() -> float:
    nonlocal numbers
    start = time.perf_counter()
    for _ in range(_REPEATS):
      numbers = add(numbers)
    jax.block_until_ready(numbers)
    return 2 * numbers.nbytes * _REPEATS / (time.perf_counter() - start)

  for compile_and_run in (flops_per_second, bytes_per_second):
    compile_and_run()
  return {
    'flops_per_second': flops_per_second,
    'bytes_per_second': bytes_per_second,
  }
