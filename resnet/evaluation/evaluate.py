"""Exact evaluation: every example once, whatever the batch size."""

from collections.abc import Callable, Mapping
import math
from typing import Protocol

import jax
from jax.experimental import multihost_utils
import numpy as np

from resnet.data.host.loader import DeviceLoader, read_ahead
from resnet.data.host.warnings import Notes
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.training import metrics
from resnet.training.state import TrainState
from resnet.training.step import JittedSteps


class Watch(Protocol):
  """Watches for batches that never arrive; see `resnet.run.watchdog`."""

  def watch(self, what: str, /) -> None:
    """Expects progress from now on; `what` is what is being waited for."""
    ...

  def rest(self) -> None:
    """Expects nothing until the next `watch`."""
    ...


def evaluate(
  experiment: Experiment,
  steps: JittedSteps,
  state: TrainState,
  notes: Notes,
  *,
  stop: Callable[[], int | None] | None = None,
  watchdog: Watch | None = None,
) -> dict[str, float] | None:
  """Evaluates on the whole evaluation split, the moving averages too.

  Args:
    experiment: with the split.
    steps: of the experiment.
    state: to evaluate.
    notes: is told of images that are left out.
    stop: called after each batch; a signal number ends the evaluation.
    watchdog: watches each batch.

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
  num_examples = len(reader.source)
  batches = read_ahead(
    reader,
    experiment.loader,
    first_step=0,
    num_steps=math.ceil(num_examples / reader.batch_size),
    notes=notes,
  )
  loader = DeviceLoader(batches, experiment.sharding.batch, notes)
  variables = {'eval': state.variables}
  if state.ema is not None:
    variables['eval_ema'] = state.ema
  replicated = experiment.sharding.replicated
  sums = {
    name: jax.device_put(metrics.zeros(), replicated) for name in variables
  }
  if watchdog:
    watchdog.watch('waiting for evaluation batch 1')
  for i, batch in enumerate(loader, start=1):
    if watchdog and i == 1:
      watchdog.rest()  # It may be compiled for.
    for name, values in variables.items():
      sums[name] = steps.evaluate(values, sums[name], batch)
    if watchdog:
      watchdog.watch(f'evaluation after batch {i}')
    if stop and stop():
      loader.close()
      return None
  counted = int(sums['eval']['num_examples'])
  num_bad = sum_over_processes(loader.num_left_out)
  if counted + num_bad != num_examples:
    raise RuntimeError(
      f'Evaluated {counted} of the {num_examples} examples of'
      f' {reader.source.name}/{reader.source.split}, {num_bad} of them broken.'
    )
  if not counted:
    raise InputError(
      f'No image of {reader.source.name}/{reader.source.split} can be decoded.'
    )
  result = {
    f'{name}/{key}': value
    for name, total in sums.items()
    for key, value in metrics.means(total).items()
  }
  result['eval/num_examples'] = counted
  if reader.max_bad_images is not None:
    result['eval/bad_images'] = num_bad
  return result


def sum_over_processes(number: int) -> int:
  """Returns the number for all: each process knows of its own rows only."""
  if jax.process_count() == 1:
    return number
  numbers = multihost_utils.process_allgather(np.int32(number))
  return int(np.sum(numbers))


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
