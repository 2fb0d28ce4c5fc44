"""Standard deviations of layer responses, as in He et al. 2016, Figure 7.

The response of a layer is the output of its 3x3 convolution after batch norm,
before the nonlinearity and before the addition.
"""

import re
from typing import Any

import jax
import numpy as np

from resnet.data.host.warnings import DataWarnings
from resnet.experiment import Experiment
from resnet.output import ProgressBar
from resnet.run.initialize import open_state


def measure(experiment: Experiment, workdir: str) -> dict[str, Any]:
  """Measures the responses of a complete run.

  Returns:
    'responses', the standard deviation for each layer, in order, over all
    evaluation images, positions and channels; 'mean_response', their mean.
  """
  _, state, _ = open_state(experiment, workdir, 'latest')
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

  # Count, sum and sum of squares by layer.
  sums: dict[str, np.ndarray] = {}
  reader = experiment.eval_reader
  with ProgressBar('measured', len(reader.source)) as bar:
    for batch in experiment.load(reader, DataWarnings()):
      mask = np.asarray(batch['mask'])
      for name, output in responses(batch['image']).items():
        y = np.asarray(output, np.float64)[mask]
        more = np.array([y.size, y.sum(), (y**2).sum()])
        sums[name] = sums.get(name, 0) + more
      bar.update(reader.batch_size)
  # Sort by stage, block and layer; the stem, which has none, comes first.
  place = re.compile(r'(?:stage|_block|bn)(\d+)')
  names = sorted(sums, key=lambda x: [int(n) for n in place.findall(x)])
  count, total, squares = np.array([sums[name] for name in names]).T
  deviations = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
  mean = float(deviations.mean())
  return {'responses': deviations.tolist(), 'mean_response': mean}
