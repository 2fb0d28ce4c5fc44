"""Will the run have what it needs? Its data, its step and the speed of both.

Each check returns a `Finding`, or raises where it cannot go on.
"""

import contextlib
import os
import time
from typing import Any

import jax
import numpy as np

from resnet.data.host.decode import decode_record
from resnet.data.host.loader import read_ahead
from resnet.data.host.warnings import Notes
from resnet.data.sources.registry import Source
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.tools.doctor.machine import Finding
from resnet.training.step import jit_steps

_SAMPLE_SIZE = 256  # Records of a split.
STEP_SECONDS, _MAX_STEPS = 5.0, 50
INPUT_SECONDS, _MAX_BATCHES = 3.0, 1_000_000


def data(experiment: Experiment) -> Finding:
  """Both splits: every record of a sample has a good label and an image."""
  texts, broken, values = [], [], {}
  for role, reader in (
    ('train', experiment.train_reader),
    ('eval', experiment.eval_reader),
  ):
    source = reader.source
    errors, labels, count = _examine(source)
    values[role] = {
      'split': source.split,
      'num_records': len(source),
      'num_sampled': count,
      'num_broken': len(errors),
      'labels': labels,
    }
    texts.append(
      f'{len(source):,} {source.split} (labels {labels[0]} to {labels[1]} in'
      f' {count:,} of them)'
    )
    if errors:
      broken.append(f'{len(errors)} of {count:,} are broken: {errors[0]}')
  text = f'{experiment.train_reader.source.name}: {", ".join(texts)}'
  if broken:
    mend = 'Prepare the set anew.'
    return Finding('FAIL', f'{text}. {" ".join(broken)} {mend}', values)
  return Finding('ok', f'{text}; all of these decode', values)


def _examine(source: Source) -> tuple[list[str], tuple[int, int], int]:
  """Returns what is wrong in a sample, its range of labels, its size."""
  size = min(_SAMPLE_SIZE, len(source))
  indices = np.linspace(0, len(source) - 1, size).astype(int).tolist()
  errors, labels = [], []
  for index, record in zip(indices, source.read(indices), strict=True):
    label = int(record['label'])
    labels.append(label)
    if not 0 <= label < source.num_classes:
      errors.append(
        f'The label of {source.key(index, record)} is {label}; expected 0 to'
        f' {source.num_classes - 1}.'
      )
    try:
      decode_record(source, index, record)
    except InputError as error:
      errors.append(str(error))
  return errors, (min(labels), max(labels)), size


def classes(experiment: Experiment) -> Finding:
  """The names of the labels, in order."""
  source = experiment.train_reader.source
  names, count = source.class_names, source.num_classes
  if names is None:
    return Finding('ok', f'{count:,} without names', {'count': count})
  shown = ', '.join(names if count < 7 else (*names[:3], '...', *names[-3:]))
  text, values = f'{count:,}: {shown}', {'count': count, 'names': list(names)}
  if len(names) != count:
    return Finding('FAIL', f'{text}, but {len(names):,} names', values)
  if repeated := sorted({name for name in names if names.count(name) > 1}):
    return Finding('warn', f'{text}; more than once: {repeated[0]}', values)
  if count == 1000 and list(names) != sorted(names):
    # Published weights of ImageNet have their logits in that order.
    text += '; not sorted: published weights of ImageNet are for sorted synsets'
    return Finding('warn', text, values)
  return Finding('ok', text, values)


def step(experiment: Experiment) -> Finding:
  """Compiles the update and times it on a batch that is on the devices."""
  batch_size = experiment.length.batch_size
  batch = _made_batch(experiment)
  steps = jit_steps(experiment.task, experiment.sharding)
  start = time.monotonic()
  update = steps.train.lower(experiment.abstract_state(), batch).compile()
  compile_seconds = time.monotonic() - start
  # The first step also loads the program: it is not counted.
  state, _ = jax.block_until_ready(update(experiment.create_state(), batch))
  seconds: list[float] = []
  while sum(seconds) < STEP_SECONDS and len(seconds) < _MAX_STEPS:
    start = time.monotonic()
    state, _ = jax.block_until_ready(update(state, batch))
    seconds.append(time.monotonic() - start)
  median = float(np.median(seconds))
  return Finding(
    'ok',
    f'{batch_size / median:,.0f} images/s, {1000 * median:,.1f} ms a step of'
    f' {batch_size:,} (median of {len(seconds)}), compiled in'
    f' {compile_seconds:.1f} s',
    {
      'images_per_second': batch_size / median,
      'step_seconds': median,
      'compile_seconds': compile_seconds,
    },
  )


def _made_batch(experiment: Experiment) -> dict[str, jax.Array]:
  """Returns a batch of noise: the step can be timed where data are broken."""
  rows = experiment.train_reader.row_count
  shape = (rows, *experiment.train_image_shape)
  batch = {
    'image': np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    'label': np.zeros(rows, np.int32),
    'mask': np.ones(rows, bool),
  }
  return {
    name: jax.make_array_from_process_local_data(experiment.sharding.batch, x)
    for name, x in batch.items()
  }


def input_speed(experiment: Experiment, step_rate: float | None) -> Finding:
  """Reads as the run would and compares with `step_rate`, images/s."""
  loader, reader = experiment.loader, experiment.train_reader
  # So many batches are made at once; only what comes after is a steady flow.
  num_ahead = max(loader.prefetch_batches, loader.num_threads) * max(
    loader.num_workers, 1
  )
  batches = read_ahead(
    reader,
    loader,
    first_step=0,
    num_steps=_MAX_BATCHES + num_ahead,
    notes=Notes(reader.max_bad_images),
  )
  with contextlib.closing(batches):
    for _ in range(num_ahead):
      next(batches)
    start = time.monotonic()
    count, seconds = 0, 0.0
    while count < num_ahead or seconds < INPUT_SECONDS:
      next(batches)
      count, seconds = count + 1, time.monotonic() - start
  rate = count * reader.row_count / seconds
  values: dict[str, Any] = {'images_per_second': rate}
  text = (
    f'{rate:,.0f} images/s are read with num_workers={loader.num_workers},'
    f' num_threads={loader.num_threads}'
  )
  if step_rate is None:
    return Finding('ok', text, values)
  values['share_of_need'] = share = rate / step_rate
  if share < 1:
    return Finding(
      'warn',
      f'{text}; the devices take {1 / share:.1f} times as many: raise'
      ' --config.data.num_workers or --config.data.num_threads'
      f' ({os.cpu_count()} cores)',
      values,
    )
  return Finding('ok', f'{text}, {share:.1f} times what a step takes', values)
