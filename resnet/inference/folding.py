"""Folds batch norms into convolutions, for inference."""

from typing import Any

from flax import traverse_util
import numpy as np

from resnet.models.blocks import PreActBlock
from resnet.models.layers import BatchNorm


def fold(model: Any, variables: Any) -> Any:
  """Folds each batch norm that follows a convolution into its kernel.

    kernel' = kernel * multiplier,  multiplier = scale / sqrt(var + epsilon)
    offset  = bias - mean * multiplier

  The results are computed in float64 and have the dtype of the variables. A
  folded batch norm has only the parameter 'offset', which it adds. In v2 blocks
  a batch norm that follows an addition keeps its variables.

  Args:
    model: the linen module, which may compute in any dtype.
    variables: its variables, NumPy arrays; they are not changed.

  Returns:
    Variables for the same module in evaluation.
  """
  flat: dict[Any, Any] = traverse_util.flatten_dict(variables)
  is_v2 = issubclass(getattr(model, 'block_cls', object), PreActBlock)
  for _, *scope, name, _ in [path for path in flat if path[-1] == 'var']:
    conv = name.replace('bn', 'conv')
    if is_v2 and scope:  # In a v2 block, bn2 follows conv1.
      conv = f'conv{int(name.removeprefix("bn")) - 1}'
    kernel = ('params', *scope, conv, 'kernel')
    if kernel not in flat:
      continue
    params, statistics = ('params', *scope, name), ('batch_stats', *scope, name)
    mean = flat.pop((*statistics, 'mean'))
    var = flat.pop((*statistics, 'var')).astype(np.float64)
    scale, bias = flat.pop((*params, 'scale')), flat.pop((*params, 'bias'))
    multiplier = scale / np.sqrt(var + BatchNorm.epsilon)
    offset = bias - mean * multiplier
    flat[kernel] = (flat[kernel] * multiplier).astype(flat[kernel].dtype)
    flat[(*params, 'offset')] = offset.astype(bias.dtype)
  return traverse_util.unflatten_dict(flat)
