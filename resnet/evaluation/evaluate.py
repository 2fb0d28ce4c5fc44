"""Exact evaluation: every example once, whatever the batch size."""

from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils
import numpy as np

from resnet.data.host.loader import DeviceLoader
from resnet.data.host.reader import BatchReader
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.training import metrics
from resnet.training.state import TrainState
from resnet.training.step import JittedSteps


def evaluate(
  experiment: Experiment,
  steps: JittedSteps,
  state: TrainState,
  warnings: DataWarnings,
  *,
  stop: Callable[[], int | None] = lambda: None,
  watch: Callable[[str | None], None] = lambda _: None,
) -> dict[str, float] | None:
  """Evaluates on the whole evaluation split, the moving averages too.

  Args:
    experiment: with the split.
    steps: of the experiment.
    state: to evaluate.
    warnings: collects the images that are left out.
    stop: called after each batch; a signal number ends the evaluation.
    watch: `Watchdog.watch`, called with what is waited for; None: it may take
      any time.

  Returns:
    'eval/loss', 'eval/top1', 'eval/top5', 'eval/num_examples'; where broken
    images may be left out, also their number, 'eval/bad_images'; where the
    state has averages, the first three of them as 'eval_ema/...'. None where
    a signal came before the end.

  Raises:
    InputError: an image is broken, or too many are.
    RunError: data workers died.
    RuntimeError: the number of examples counted is not that of the split.
  """
  reader = experiment.eval_reader
  loader = experiment.load(reader, warnings)
  variables = {'eval': state.variables}
  if state.ema is not None:
    variables['eval_ema'] = state.ema
  replicated = experiment.sharding.replicated
  sums = {
    name: jax.device_put(metrics.zeros(), replicated) for name in variables
  }
  watch('waiting for evaluation batch 1')
  for i, batch in enumerate(loader, start=1):
    if i == 1:
      watch(None)  # It may be compiled for.
    for name, values in variables.items():
      sums[name] = steps.evaluate(values, sums[name], batch)
    watch(f'evaluation after batch {i}')
    if stop():
      loader.close()
      return None
  counted = int(sums['eval']['num_examples'])
  num_bad = check_count(reader, loader, counted)
  result = {
    f'{name}/{key}': value
    for name, total in sums.items()
    for key, value in metrics.means(total).items()
  }
  result['eval/num_examples'] = counted
  if reader.max_bad_images is not None:
    result['eval/bad_images'] = num_bad
  return result


def check_count(reader: BatchReader, loader: DeviceLoader, counted: int) -> int:
  """Returns how many images were broken; all others must have been counted."""
  split = f'{reader.source.name}/{reader.source.split}'
  num_bad = sum_over_processes(loader.num_left_out)
  if counted + num_bad != len(reader.source):
    raise RuntimeError(
      f'Evaluated {counted} of the {len(reader.source)} examples of {split},'
      f' {num_bad} of them broken.'
    )
  if not counted:
    raise InputError(f'No image of {split} can be decoded.')
  return num_bad


def sum_over_processes(number: int) -> int:
  """Returns the sum: each process counts its own rows only."""
  if jax.process_count() == 1:
    return number
  return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def describe(step: int, values: Mapping[str, float]) -> str:
  """Returns an evaluation as one line."""
  left_out = ema = ''
  if 'eval_ema/top1' in values:
    ema = (
      f'  ema top1 {values["eval_ema/top1"]:.4f}'
      f'  ema loss {values["eval_ema/loss"]:.4f}'
    )
  if num_bad := values.get('eval/bad_images'):
    left_out = f', {num_bad:,.0f} broken left out'
  return (
    f'eval at step {step}: top1 {values["eval/top1"]:.4f}'
    f'  top5 {values["eval/top5"]:.4f}  loss {values["eval/loss"]:.4f}{ema}'
    f'  ({values["eval/num_examples"]:,.0f} images{left_out})'
  )
