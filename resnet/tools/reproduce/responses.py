"""Standard deviations of layer responses, as in He et al. 2016, Figure 7.

The response of a layer is the output of its 3x3 convolution after batch norm,
before the nonlinearity and before the addition.
"""

import re
from typing import Any

import jax
import numpy as np

from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.run.checkpoint import Checkpoints


def measure(experiment: Experiment, workdir: str) -> dict[str, Any]:
  """Measures the responses of a complete run.

  Returns:
    'responses', the standard deviation of each layer, in order, over all images
    of the evaluation split, positions and channels; 'mean_response', their
    mean.
  """
  checkpoints = Checkpoints(workdir)
  num_steps = experiment.length.num_steps
  state = checkpoints.restore(num_steps, experiment.abstract_state())
  checkpoints.close()
  task = experiment.task

  @jax.jit
  def responses(images: jax.Array) -> dict[str, jax.Array]:
    _, captured = task.model.apply(
      state.variables,
      task.normalize(images),
      train=False,
      capture_intermediates=lambda module, _: bool(
        re.fullmatch(r'stem_bn|bn\d', module.name or '')
      ),
      mutable='intermediates',
    )
    outputs = jax.tree_util.tree_leaves_with_path(captured)
    return {jax.tree_util.keystr(path): output for path, output in outputs}

  reader = experiment.eval_reader
  # Count, sum and sum of squares by layer.
  sums: dict[str, np.ndarray] = {}
  for i in range(-(-len(reader.source) // reader.batch_size)):
    batch = reader(i)
    if isinstance(batch, InputError):
      raise batch
    for name, output in responses(batch['image']).items():
      y = np.asarray(output, np.float64)[batch['mask']]
      sums[name] = sums.get(name, 0) + np.array([y.size, y.sum(), (y**2).sum()])
  deviations = []
  # Sort by stage, block and layer; the stem, which has none, comes first.
  place = re.compile(r'(?:stage|_block|bn)(\d+)')
  for name in sorted(sums, key=lambda x: [int(n) for n in place.findall(x)]):
    count, total, total_of_squares = sums[name]
    variance = total_of_squares / count - (total / count) ** 2
    deviations.append(float(np.sqrt(np.maximum(variance, 0))))
  mean = float(np.mean(deviations))
  return {'responses': deviations, 'mean_response': mean}
