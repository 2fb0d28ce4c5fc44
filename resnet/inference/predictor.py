"""Batches of any size through a network that is compiled for a few sizes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.inference.network import Function, Network


class Predictor:
  """Asks a network about batches of any size, padded to a few sizes."""

  def __init__(
    self, network: Network, outputs: Sequence[str], batch_sizes: Sequence[int]
  ):
    """Compiles nothing yet.

    Args:
      network: to ask.
      outputs: names of what is asked for.
      batch_sizes: to compile for; the largest is the most that is taken.
    """
    for name in outputs:
      if name not in network.outputs:
        known = ', '.join(network.outputs)
        raise InputError(f'{network.name} has no {name!r}. There are: {known}.')
    self.network = network
    self.batch_sizes = tuple(sorted(batch_sizes))
    self._outputs = tuple(outputs)
    self._functions: dict[int, Function] = {}

  def compile(self) -> None:
    """Compiles for all batch sizes, so that no call has to."""
    for size in self.batch_sizes:
      self._function(size)

  def _function(self, size: int) -> Function:
    if size not in self._functions:
      self._functions[size] = self.network.compile(size, self._outputs)
    return self._functions[size]

  def start(self, images: np.ndarray) -> Callable[[], dict[str, np.ndarray]]:
    """Starts on uint8 images [B, S, S, C]; the result waits for the end."""
    count = len(images)
    size = next(size for size in self.batch_sizes if size >= count)
    shape = self.network.preprocessing.image_shape
    padded = np.zeros((size, *shape), np.uint8)
    padded[:count] = images
    outputs = self._function(size)(padded)
    return lambda: {k: np.asarray(v)[:count] for k, v in outputs.items()}

  def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs for uint8 images [B, S, S, C]."""
    return self.start(images)()

  def stream(
    self, batches: Iterable[tuple[Any, np.ndarray]]
  ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yields (key, outputs) of each (key, images).

    While the device works on a batch, the next one is already asked for.
    """
    last = None
    for key, images in batches:
      result = self.start(images)
      if last:
        yield last[0], last[1]()
      last = key, result
    if last:
      yield last[0], last[1]()
