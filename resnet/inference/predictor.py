"""Runs a network on batches of varying size, compiled for a few sizes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.inference.network import Network


class Predictor:
  """Runs a network on batches, each padded to one of a few compiled sizes."""

  def __init__(
    self, network: Network, outputs: Sequence[str], batch_sizes: Sequence[int]
  ):
    """Creates the predictor, which compiles each size when it is first used.

    See `Network.outputs` for the names. No batch may exceed the largest size.
    """
    for name in outputs:
      if name not in network.outputs:
        known = ', '.join(network.outputs)
        raise InputError(
          f'{network.name} has no output {name!r}. There are: {known}.'
        )
    self.network = network
    self.batch_sizes = tuple(sorted(batch_sizes))
    self._function = functools.cache(
      lambda size: network.compile(size, tuple(outputs))
    )

  def compile(self) -> None:
    """Compiles for all batch sizes now, instead of in the first calls."""
    for size in self.batch_sizes:
      self._function(size)

  def start(self, images: np.ndarray) -> Callable[[], dict[str, np.ndarray]]:
    """Starts to compute the outputs for uint8 images [B, S, S, C].

    Returns:
      A function that waits for the outputs and returns them.
    """
    count = len(images)
    size = next(size for size in self.batch_sizes if size >= count)
    padded = np.pad(images, ((0, size - count), (0, 0), (0, 0), (0, 0)))
    outputs = self._function(size)(padded)
    return lambda: {k: np.asarray(v)[:count] for k, v in outputs.items()}

  def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs for uint8 images [B, S, S, C]."""
    return self.start(images)()

  def stream(
    self, batches: Iterable[tuple[Any, np.ndarray]]
  ) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yields (key, outputs) for each (key, images).

    The next batch is prepared while the device computes on the current one.
    """
    last = None
    for key, images in batches:
      result = self.start(images)
      if last:
        yield last[0], last[1]()
      last = key, result
    if last:
      yield last[0], last[1]()
