"""Pretrained networks for prediction in Python.

    from resnet import pretrained
    net = pretrained.load('hf-hub:timm/resnet50.a1_in1k')
    net.predict(['cat.jpg'])

Without an argument, `load` gives the network in the package.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.inference.images import decode_files
from resnet.inference.network import Weights, create_network, read_weights
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform, normalize
from resnet.weights.sources import PACKAGED

_MAX_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network with its weights and its preprocessing.

  Attributes:
    weights: module, variables, preprocessing and class names.
  """

  weights: Weights

  @property
  def model(self) -> Any:
    """The linen module: `model.apply(variables, images, train=False)`."""
    return self.weights.model

  @property
  def variables(self) -> dict[str, Any]:
    """The variables of the module, NumPy arrays."""
    return self.weights.variables

  def preprocess(self, images: Sequence[str]) -> jax.Array:
    """Reads PNG or JPEG files as the network's input, float32 [B, S, S, C]."""
    pixels = jnp.asarray(self._read(images))
    return normalize(pixels, self.weights.preprocessing)

  def predict(
    self, images: Sequence[str], top: int = 5
  ) -> list[list[dict[str, Any]]]:
    """Returns the `top` likeliest classes of each PNG or JPEG file.

    A class has 'index', 'name' and 'probability', and 'id' if it is one of
    ImageNet's.
    """
    rows = []
    for start in range(0, len(images), _MAX_BATCH):
      pixels = self._read(images[start : start + _MAX_BATCH])
      rows += [*self._predictor(pixels)['probabilities']]
    return [self._predictor.network.top_classes(row, top) for row in rows]

  @functools.cached_property
  def _predictor(self) -> Predictor:
    sizes = (1, 4, _MAX_BATCH)
    return Predictor(create_network(self.weights), ['probabilities'], sizes)

  def _read(self, images: Sequence[str]) -> np.ndarray:
    if isinstance(images, str) or not images:
      raise InputError(
        f"{images!r} is not a list of files such as ['cat.jpg']."
      )
    transform = ImageTransform(preprocessing=self.weights.preprocessing)
    with ThreadPoolExecutor() as pool:
      crops = [image for _, image in decode_files(images, transform, pool)]
    return np.concatenate(crops)


def load(
  source: str = PACKAGED, model: str | None = None, *, dtype: str = 'float32'
) -> Pretrained:
  """Loads a network; the arguments are those of `inference.read_weights`."""
  weights = read_weights(source, model, dtype=dtype, needs_head=False)
  return Pretrained(weights)
