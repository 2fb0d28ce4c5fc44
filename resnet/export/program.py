"""The function that is exported."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from resnet.inference.network import Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """A network as other programs call it: images [B, H, W, C] -> logits [B, K].

  Attributes:
    weights: of the network.
    with_preprocessing: take uint8 pixels, not normalised float32 ones.
    platforms: that it must run on, in JAX's words: 'cpu', 'cuda', 'tpu', ...
  """

  weights: Weights
  with_preprocessing: bool
  platforms: tuple[str, ...]

  @property
  def shape(self) -> tuple[int, int, int]:
    """Returns [H, W, C] of its images."""
    return self.weights.preprocessing.image_shape

  @property
  def dtype(self) -> Any:
    """Returns the dtype of its images."""
    return jnp.uint8 if self.with_preprocessing else jnp.float32

  def logits(self, variables: Any, images: jax.Array) -> jax.Array:
    """Computes the logits with these variables of the network."""
    if self.with_preprocessing:
      return self.weights.logits(variables, images)
    return self.weights.model.apply(variables, images, train=False)

  def with_fields(self, **fields: Any) -> 'Program':
    """Returns the same program of a network with other fields of its module."""
    model = self.weights.model.clone(**fields)
    weights = dataclasses.replace(self.weights, model=model)
    return dataclasses.replace(self, weights=weights)


def current_platform() -> str:
  """Returns the platform of JAX's default backend."""
  return jax.default_backend().replace('gpu', 'cuda')
