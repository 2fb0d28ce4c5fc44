"""The cost of a network, counted from its traced program; nothing runs."""

import collections
from collections.abc import Mapping
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from resnet.models import abstract_variables, create_model
from resnet.models.resnet import ResNet

# Primitives that count as one operation per element of their output.
_ELEMENTWISE = {'add', 'sub', 'mul', 'div'}


@dataclasses.dataclass
class Cost:
  """The cost of one image.

  Attributes:
    conv_multiply_adds: multiply-adds of convolutions and dense layers.
    other_operations: all other multiplications and additions: batch norm (two
      per element), shortcut additions, averages.
    activations: output elements of convolutions and dense layers.
    saved_bytes: bytes of the inputs and outputs of convolutions and dense
      layers, which the backward pass needs; each tensor counts once.
  """

  conv_multiply_adds: int = 0
  other_operations: int = 0
  activations: int = 0
  saved_bytes: int = 0

  @property
  def multiply_adds(self) -> int:
    """All operations; a multiply-add counts as one."""
    return self.conv_multiply_adds + self.other_operations

  def __add__(self, other: 'Cost') -> 'Cost':
    values = map(dataclasses.astuple, (self, other))
    return Cost(*map(sum, zip(*values, strict=True)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkCost:
  """The cost of a network and of its parts.

  Attributes:
    model: the linen module.
    image_size: side of the image, pixels.
    params: shapes of the parameters, nested by module.
    features: shapes of the features of one image, 'stem' to 'pooled'.
    costs: cost by part: 'stem', 'stage1', 'stage2' .., 'head'.
  """

  model: Any
  image_size: int
  params: Mapping[str, Any]
  features: Mapping[str, tuple[int, ...]]
  costs: Mapping[str, Cost]

  @property
  def total(self) -> Cost:
    return sum(self.costs.values(), Cost())

  def num_params(self, part: str | None = None) -> int:
    """Returns the number of parameters of the network or of one part."""
    return sum(
      leaf.size
      for module, tree in self.params.items()
      if part in (None, _part(module))
      for leaf in jax.tree.leaves(tree)
    )

  def training_bytes(self, batch_size: int, part: str | None = None) -> int:
    """Estimates the memory of an update, for the network or one part.

    It counts float32 parameters, gradients and momentum, and `saved_bytes`.
    """
    cost = self.total if part is None else self.costs[part]
    return 3 * 4 * self.num_params(part) + batch_size * cost.saved_bytes


def trace(name: str, image_size: int, **overrides: Any) -> NetworkCost:
  """Traces the evaluation of `create_model(name)` on one image."""
  model = create_model(name, **overrides)
  if isinstance(model, ResNet):
    # Unroll to count each block; fix the backend for the same count anywhere.
    model = model.clone(scan_blocks=False, conv_backend='xla')
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  variables = abstract_variables(model)
  # Tracing removes no dead code, so the logits are counted too.
  apply = functools.partial(model.apply, train=False, method='features')
  jaxpr, features = jax.make_jaxpr(apply, return_shape=True)(variables, images)
  costs = count(jaxpr.jaxpr)
  order = ['stem', *sorted(costs.keys() - {'stem', 'head'}), 'head']
  return NetworkCost(
    model=model,
    image_size=image_size,
    params=variables['params'],
    features={key: leaf.shape[1:] for key, leaf in features.items()},
    costs={part: costs[part] for part in order},
  )


def count(jaxpr: Any) -> dict[str, Cost]:
  """Returns the cost of a traced forward pass by part of the network."""
  costs = collections.defaultdict(Cost)
  _count(jaxpr, '', costs, set())
  return dict(costs)


def _count(
  jaxpr: Any, scope: str, costs: dict[str, Cost], saved: set[Any]
) -> None:
  for eqn in jaxpr.eqns:
    inner_scope = f'{scope}/{eqn.source_info.name_stack}'
    inner = list(core.jaxprs_in_params(eqn.params))
    for inner_jaxpr in inner:
      _count(inner_jaxpr, inner_scope, costs, saved)
    if inner:
      continue
    cost = costs[_part(inner_scope)]
    out, primitive = eqn.outvars[0].aval, eqn.primitive.name
    if primitive in ('conv_general_dilated', 'dot_general'):
      cost.conv_multiply_adds += out.size * _terms(eqn)
      cost.activations += out.size
      for var in (eqn.invars[0], eqn.outvars[0]):
        if var not in saved:
          saved.add(var)
          cost.saved_bytes += var.aval.size * var.aval.dtype.itemsize
    elif jnp.issubdtype(getattr(out, 'dtype', bool), jnp.floating):
      if primitive in _ELEMENTWISE:
        cost.other_operations += out.size
      elif primitive == 'reduce_sum':
        cost.other_operations += eqn.invars[0].aval.size
      elif primitive == 'reduce_window_sum':
        window = math.prod(eqn.params['window_dimensions'])
        cost.other_operations += out.size * window


def _terms(eqn: Any) -> int:
  """Counts the products per output element of a convolution or dot."""
  if eqn.primitive.name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    output_dim = eqn.params['dimension_numbers'].rhs_spec[0]
    return math.prod(kernel) // kernel[output_dim]
  (contracted, _), _ = eqn.params['dimension_numbers']
  return math.prod(eqn.invars[0].aval.shape[dim] for dim in contracted)


def _part(scope: str) -> str:
  """'ResNet/stage1_block2/conv1' -> 'stage1'; unnamed parts are 'head'."""
  match = re.search(r'(stage\d+|stem)_', scope)
  return match.group(1) if match else 'head'
