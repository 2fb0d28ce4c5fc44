"""Exact evaluation: every example counts once, for any batch size."""

from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from resnet.data.host.loader import DeviceLoader
from resnet.data.host.reader import BatchReader
from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.training import metrics
from resnet.training.state import TrainState
from resnet.training.step import JittedSteps

# The largest number of classes with a confusion matrix, which grows as its
# square.
_MAX_CONFUSION = 1000


def evaluate(
  experiment: Experiment,
  steps: JittedSteps,
  state: TrainState,
  warnings: DataWarnings,
  *,
  stop: Callable[[], int | None] = lambda: None,
  watch: Callable[[str | None], None] = lambda _: None,
  advance: Callable[[int], None] = lambda _: None,
  on_confusion: Callable[[np.ndarray], None] = lambda _: None,
) -> dict[str, float] | None:
  """Evaluates the weights, and their moving averages, on the whole split.

  `warnings` collects the images that are left out. If `stop`, called after each
  batch, returns the number of a signal, the evaluation ends. `watch` is called
  with a description of each wait, or with None for a wait without limit.
  `advance` is called with the batch size after each batch is dispatched.
  `on_confusion` is called with the confusion matrix of the weights by which the
  best checkpoint is chosen, [K, K], unless there are over 1,000 classes.

  Returns:
    'eval/loss', 'eval/top1', 'eval/num_examples'; 'eval/top5' if
    `metrics.has_top5`; if broken images may be left out, 'eval/bad_images'; if
    the state has moving averages, loss, top1 and top5 also as 'eval_ema/...'.
    None if a signal ended the evaluation.

  Raises:
    InputError: an image is broken, or too many are.
    RunError: data workers died.
    RuntimeError: the number of evaluated examples is not that of the split.
  """
  reader, sharding = experiment.eval_reader, experiment.sharding
  loader = experiment.load(reader, warnings)
  variables = {'eval': state.variables}
  if state.ema is not None:
    variables['eval_ema'] = state.ema
  num_classes = experiment.derived()['num_classes']

  def zeros() -> metrics.Sums:
    shape = (num_classes, num_classes)
    more = {'confusion': jnp.zeros(shape, jnp.int32)}
    sums = metrics.zeros() | (more if num_classes <= _MAX_CONFUSION else {})
    return jax.device_put(sums, sharding.replicated)

  # Each entry needs its own arrays, because the step donates them.
  sums = {name: zeros() for name in variables}
  watch('waiting for evaluation batch 1')
  for i, batch in enumerate(loader, start=1):
    if i == 1:
      watch(None)  # The first batch may wait for compilation.
    for name, values in variables.items():
      sums[name] = steps.evaluate(values, sums[name], batch)
    watch(f'evaluation after batch {i}')
    advance(reader.batch_size)
    if stop():
      loader.close()
      return None
  counted = int(sums['eval']['num_examples'])
  num_bad = check_count(reader, loader, counted)
  matrices = [x.pop('confusion', None) for x in sums.values()]
  if matrices[-1] is not None:
    on_confusion(np.asarray(matrices[-1]))
  result = {
    f'{name}/{key}': value
    for name, total in sums.items()
    for key, value in metrics.means(total).items()
    if key != 'top5' or metrics.has_top5(num_classes)
  }
  result['eval/num_examples'] = counted
  if reader.max_bad_images is not None:
    result['eval/bad_images'] = num_bad
  return result


def check_count(reader: BatchReader, loader: DeviceLoader, counted: int) -> int:
  """Returns the number of broken images if all others were counted."""
  split = f'{reader.source.name}/{reader.source.split}'
  num_bad = sum_over_processes(loader.num_left_out)
  if counted + num_bad != len(reader.source):
    raise RuntimeError(
      f'Evaluated {counted} of the {len(reader.source)} examples of {split};'
      f' {num_bad} are broken.'
    )
  if not counted:
    raise InputError(f'No image of {split} can be decoded.')
  return num_bad


def sum_over_processes(number: int) -> int:
  """Sums a number over all processes, each of which counts its own rows."""
  if jax.process_count() == 1:
    return number
  return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def describe(step: int, values: Mapping[str, float]) -> str:
  """Returns an evaluation as one line."""
  numbers = {
    'top1': 'eval/top1',
    'top5': 'eval/top5',
    'loss': 'eval/loss',
    'ema top1': 'eval_ema/top1',
    'ema loss': 'eval_ema/loss',
  }
  text = '  '.join(
    f'{name} {values[key]:.4f}'
    for name, key in numbers.items()
    if key in values
  )
  num_bad = values.get('eval/bad_images')
  left_out = f', {num_bad:,.0f} broken left out' if num_bad else ''
  count = f'{values["eval/num_examples"]:,.0f} images{left_out}'
  return f'eval at step {step}: {text}  ({count})'
