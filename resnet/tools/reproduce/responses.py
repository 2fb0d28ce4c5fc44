"""Standard deviations of layer responses: He et al. 2016, Figure 7.

The response of a layer is the output of its 3x3 convolution after batch norm,
before the nonlinearity and before the addition.
"""

import math
import re
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.run.checkpoint import Checkpoints


def measure(experiment: Experiment, workdir: str) -> dict[str, Any]:
  """Returns 'responses' of every layer of a finished run, in their order.

  Over all images, places and channels of the evaluation split; 'mean_response'
  is their mean. What is not finite is None.
  """
  checkpoints = Checkpoints(workdir)
  state = checkpoints.restore(
    experiment.length.num_steps, experiment.abstract_state()
  )
  checkpoints.close()
  variables, task = state.variables, experiment.task

  @jax.jit
  def moments(images: jax.Array, mask: jax.Array) -> dict[str, Any]:
    _, captured = task.model.apply(
      variables,
      task.normalize(images),
      train=False,
      capture_intermediates=lambda module, _: _is_batch_norm(module.name),
      mutable='intermediates',
    )
    outputs = {
      '/'.join(key.key for key in path[:-2]): output
      for path, output in jax.tree_util.tree_leaves_with_path(
        captured['intermediates']
      )
    }
    return {name: _moments(y, mask) for name, y in outputs.items()}

  reader = experiment.eval_reader
  totals: dict[str, np.ndarray] = {}
  for i in range(-(-len(reader.source) // reader.batch_size)):
    batch = reader(i)
    if isinstance(batch, InputError):
      raise batch
    for name, values in moments(batch['image'], batch['mask']).items():
      totals[name] = totals.get(name, 0.0) + np.asarray(values, np.float64)
  deviations = []
  for name in sorted(totals, key=_place):
    count, total, total_of_squares = totals[name]
    variance = total_of_squares / count - (total / count) ** 2
    deviations.append(math.sqrt(max(variance, 0.0)))
  known = [x if math.isfinite(x) else None for x in deviations]
  mean = None if None in known else statistics.mean(deviations)
  return {'responses': known, 'mean_response': mean}


def _is_batch_norm(name: str | None) -> bool:
  return bool(re.fullmatch(r'stem_bn|bn\d', name or ''))


def _moments(y: jax.Array, mask: jax.Array) -> jax.Array:
  """[N, H, W, C], [N] -> count, sum, sum of squares, of the true images."""
  y = y.astype(jnp.float32)
  true = mask.astype(jnp.float32)[:, None, None, None]
  count = jnp.sum(true) * (y.size // y.shape[0])
  return jnp.stack([count, jnp.sum(true * y), jnp.sum(true * y * y)])


def _place(name: str) -> list[int]:
  """'stage2_block1/bn1' -> [2, 1, 1]; the stem, without numbers, is first."""
  return [int(digits) for digits in re.findall(r'\d+', name)]
