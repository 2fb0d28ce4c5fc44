"""Checks that each of some faults in the core makes a fast test fail.

  .venv/bin/python -m benchmarks.mutations [NAME ...]

A fault is one changed line in a copy of the repository. Prints a row for each
fault with the test that failed first. Exits with 1 if a fault was not detected.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Fault(NamedTuple):
  """Replaces `before` with `after` in `path`; `tests` must detect that."""

  name: str
  path: str
  before: str
  after: str
  tests: str


FAULTS = (
  Fault(
    'batch norm momentum',
    'resnet/models/layers.py',
    'kept = keep * running.value',
    'kept = (1 - keep) * running.value',
    'tests/models/test_layers.py',
  ),
  Fault(
    'statistics of one group only',
    'resnet/models/layers.py',
    'mean = jnp.mean(grouped, axis=(1, 2, 3))',
    'mean = jnp.mean(grouped, axis=(1, 2, 3)) * 0 + jnp.mean(grouped[:1])',
    'tests/models/test_layers.py',
  ),
  Fault(
    'a folded batch norm without its mean',
    'resnet/inference/folding.py',
    'offset = bias - mean * multiplier',
    'offset = bias - mean * 0 * multiplier',
    'tests/inference/test_folding.py',
  ),
  Fault(
    'stride of v1 in v1.5',
    'resnet/models/blocks.py',
    "    y = self.conv(width, 1, strides_1x1, name='conv1')(x)",
    '    strides_1x1, strides_3x3 = strides_3x3, strides_1x1\n'
    "    y = self.conv(width, 1, strides_1x1, name='conv1')(x)",
    'tests/models/test_cost.py tests/models/test_blocks.py',
  ),
  Fault(
    'no ReLU after the addition',
    'resnet/models/blocks.py',
    'nn.relu(_add_shortcut(self, y, x, x))\n\n\nclass B',
    '_add_shortcut(self, y, x, x)\n\n\nclass B',
    'tests/models/test_blocks.py',
  ),
  Fault(
    'crop offset',
    'resnet/data/host/transforms.py',
    'top, left = (round((side - size) / 2) for side in image.shape[:2])',
    'top, left = (round((side - size) / 2 + 1) for side in image.shape[:2])',
    'tests/data/host/test_transforms.py',
  ),
  Fault(
    'crop window too small by one',
    'resnet/data/host/transforms.py',
    'top, left = (int(draw * (2 * padding + 1)) for draw in draws[:2])',
    'top, left = (int(draw * (2 * padding)) for draw in draws[:2])',
    'tests/data/host/test_transforms.py',
  ),
  Fault(
    'order not seeded',
    'resnet/data/host/reader.py',
    'seed=_derive(self.seed, _ORDER_STREAM),',
    'seed=_derive(0, _ORDER_STREAM),',
    'tests/data/host/test_loader.py tests/data/host/test_order.py',
  ),
  Fault(
    'schedule off by one',
    'resnet/training/schedules.py',
    'return lambda step: schedule(jnp.asarray(step, jnp.float32))',
    'return lambda step: schedule(jnp.asarray(step, jnp.float32) + 1)',
    'tests/training/test_schedules.py',
  ),
  Fault(
    'mask ignored',
    'resnet/training/metrics.py',
    "'num_examples': jnp.sum(mask, dtype=jnp.float32),",
    "'num_examples': jnp.sum(mask | True, dtype=jnp.float32),",
    'tests/training/test_metrics.py',
  ),
  Fault(
    'top-5 of six',
    'resnet/training/metrics.py',
    'jnp.sum((rank < 5) & counts, dtype=jnp.float32)',
    'jnp.sum((rank <= 5) & counts, dtype=jnp.float32)',
    'tests/training/test_metrics.py',
  ),
  Fault(
    'donated state used again',
    'resnet/training/state.py',
    'return self.replace(ema=jax.tree.map(jnp.copy, self.variables))',
    'return self.replace(ema=self.variables)',
    'tests/training/test_averages.py tests/training/test_step.py',
  ),
  Fault(
    'moving averages not moved',
    'resnet/training/state.py',
    'lambda mean, value: decay * mean + (1.0 - decay) * value,',
    'lambda mean, value: mean + (1.0 - decay) * 0.0 * value,',
    'tests/training/test_averages.py',
  ),
  Fault(
    'label smoothing in evaluation',
    'resnet/training/step.py',
    "losses_ = losses.cross_entropy(logits, batch['label'])",
    "losses_ = task.loss_fn(logits, batch['label'])",
    'tests/evaluation/test_evaluate.py tests/training/test_step.py',
  ),
  Fault(
    'updates that are not finite are made',
    'resnet/training/step.py',
    'params=choose(params, state.params),',
    'params=params,',
    'tests/training/test_step.py',
  ),
  Fault(
    'gradients of accumulated parts summed, not averaged',
    'resnet/training/accumulation.py',
    'return jax.tree.map(lambda x: x / count, total)',
    'return jax.tree.map(lambda x: x / count * 2, total)',
    'tests/training/test_step.py',
  ),
  Fault(
    'weight decay on norms',
    'resnet/training/optimizers.py',
    "'kernels': lambda param: param.ndim > 1,",
    "'kernels': lambda param: param.ndim > 0,",
    'tests/training/test_optimizers.py',
  ),
  Fault(
    'frozen stages off by one',
    'resnet/training/optimizers.py',
    '_stage(module) <= frozen_stages',
    '_stage(module) < frozen_stages',
    'tests/training/test_optimizers.py tests/test_finetune.py',
  ),
  Fault(
    'checksum skipped',
    'resnet/run/integrity.py',
    'if inspect(state)[0] != checksum:',
    'if False:',
    'tests/run/test_checkpoint.py',
  ),
  Fault(
    'resumed at the first batch',
    'resnet/run/run.py',
    'first_step=first_step,\n    num_steps=experiment.length.num_steps,',
    'first_step=0,\n    num_steps=experiment.length.num_steps,',
    'tests/run/test_loop.py',
  ),
  Fault(
    'kernels of PyTorch transposed wrongly',
    'resnet/weights/naming/layout.py',
    '4: (3, 2, 0, 1)',
    '4: (3, 2, 1, 0)',
    'tests/weights',
  ),
)


def first_failure(fault: Fault) -> str | None:
  """Returns the first test that fails with the fault, None if none does."""
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch) / 'copy'
    ignore = shutil.ignore_patterns('.git', '.venv', 'runs', '__pycache__')
    shutil.copytree(ROOT, copy, ignore=ignore)
    path = copy / fault.path
    text = path.read_text()
    if text.count(fault.before) != 1:
      sys.exit(f'{fault.path} must contain this once: {fault.before}')
    path.write_text(text.replace(fault.before, fault.after))
    result = subprocess.run(
      [
        *(sys.executable, '-m', 'pytest', '-q', '-x', '-n0'),
        *('-m', 'not slow', *fault.tests.split()),
      ],
      cwd=copy,
      capture_output=True,
      text=True,
      check=False,
    )
  failed = re.search(r'^(?:FAILED|ERROR) (\S+)', result.stdout, re.MULTILINE)
  return failed[1] if failed else None


def main() -> int:
  names = sys.argv[1:]
  missed = 0
  for fault in FAULTS:
    if names and fault.name not in names:
      continue
    noticed = first_failure(fault)
    missed += noticed is None
    print(f'| {fault.name} | {noticed or "NOT NOTICED"} |', flush=True)
  return int(missed > 0)


if __name__ == '__main__':
  sys.exit(main())
