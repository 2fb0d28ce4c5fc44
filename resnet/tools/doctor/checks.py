"""Checks the machine and the data of a run; an exception means FAIL."""

from collections.abc import Callable
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from typing import Literal, NamedTuple

import jax
import numpy as np
from packaging.requirements import Requirement

from resnet import backend
from resnet.data.host.decode import decode_record
from resnet.data.host.reader import BatchReader
from resnet.data.sources.imagenet_names import readable_name
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.files import writing
from resnet.run.checkpoint import FOLDER, Checkpoints
from resnet.run.stopping import StopSignal
from resnet.tools.benchmark import input, programs
from resnet.tools.command import size_text

REQUIREMENTS = pathlib.Path(__file__).parents[3] / 'requirements.txt'
_PACKAGE = 'resnet-flax'  # As in pyproject.toml.
_SHOWN = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
_SAMPLE_SIZE = 256  # Records per split.
STEP_SECONDS, INPUT_SECONDS = 5.0, 3.0


class Finding(NamedTuple):
  """The result of a check and, for FAIL and warn, what to fix.

  Attributes:
    status: see `resnet.tools.doctor`.
    text: what was found.
    rate: images/s, if the check measured them.
  """

  status: Literal['ok', 'warn', 'FAIL', 'skip']
  text: str
  rate: float | None = None


def versions(requirements: pathlib.Path = REQUIREMENTS) -> Finding:
  """Compares the installed packages with a requirements file."""
  wrong, found, fix = [], {}, f'pip install --requirement {requirements}'
  if requirements.exists():
    lines = re.sub('#.*', '', requirements.read_text()).splitlines()
  else:  # The wheel has no such file.
    lines = importlib.metadata.requires(_PACKAGE) or []
    fix = f'pip install {_PACKAGE}'
  for required in map(Requirement, filter(str.strip, lines)):
    if required.marker:  # Of an extra.
      continue
    name = required.name
    try:
      found[name] = version = importlib.metadata.version(name)
      if not required.specifier.contains(version, prereleases=True):
        wrong.append(f'{name} {version} is not in {required}')
    except importlib.metadata.PackageNotFoundError:
      wrong.append(f'{name} is missing')
  shown = [f'{name} {found[name]}' for name in _SHOWN if name in found]
  text = f'Python {platform.python_version()}, {", ".join(shown)}'
  if wrong:
    return Finding('FAIL', f'{", ".join(wrong)}: {fix} ({text})')
  return Finding('ok', text)


def devices() -> Finding:
  """Names JAX's devices and the free memory of the fullest one."""
  found = backend.devices()
  text = f'{len(found)} x {found[0].device_kind} ({found[0].platform})'
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if all('bytes_limit' in x for x in stats):
    free, limit = min(
      (x['bytes_limit'] - x['bytes_in_use'], x['bytes_limit']) for x in stats
    )
    text += f', at least {size_text(free)} of {size_text(limit)} free on each'
  names = {x.metadata['Name'] or '' for x in importlib.metadata.distributions()}
  unused = [x for x in names if x.lower().startswith(('jax-cuda', 'libtpu'))]
  if found[0].platform == 'cpu' and unused:
    fix = 'is installed: check the driver (nvidia-smi) and JAX_PLATFORMS'
    return Finding('warn', f'{text}, but {", ".join(sorted(unused))} {fix}')
  return Finding('ok', text)


def disk(experiment: Experiment, workdir: str) -> Finding:
  """Compares free space with the checkpoints that the run will keep."""
  size = state_bytes(experiment)
  # The latest ones, the best one, and one that is being written.
  count = experiment.config['keep_checkpoints'] + 2
  files = pathlib.Path(workdir, FOLDER).rglob('*')
  held = sum(path.stat().st_size for path in files if path.is_file())
  needed = max(count * size - held, 0)
  folder = _nearest_folder(workdir)
  free = shutil.disk_usage(folder).free
  text = f'{size_text(free)} free in {folder}, {size_text(needed)} needed'
  text += f' ({count} checkpoints of {size_text(size)})'
  if free < needed:
    fix = 'free some space, type another --workdir, or keep fewer checkpoints:'
    return Finding('FAIL', f'{text}: {fix} --config.keep_checkpoints=1')
  return Finding('ok', text)


def state_bytes(experiment: Experiment) -> int:
  """Returns the size of the training state."""
  leaves = jax.tree.leaves(experiment.abstract_state())
  return sum(x.size * x.dtype.itemsize for x in leaves)


def _nearest_folder(path: str) -> str:
  """Returns `path` or its nearest parent that is a folder."""
  start = pathlib.Path(os.path.abspath(path))
  return next(str(x) for x in (start, *start.parents) if x.is_dir())


def checkpoint(experiment: Experiment, workdir: str) -> Finding:
  """Saves the initial state next to the workdir and restores it."""
  state, size = experiment.create_state(), state_bytes(experiment)
  beside = _nearest_folder(os.path.dirname(os.path.abspath(workdir)))
  with writing(beside):
    place = tempfile.TemporaryDirectory(prefix='.doctor.', dir=beside)
  with (
    StopSignal() as stop,  # Delays signals until Orbax's threads end.
    place as folder,
    contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints,
  ):
    start = time.monotonic()
    checkpoints.save(state, None)
    checkpoints.finish(expected_step=0)
    save = time.monotonic() - start
    jax.block_until_ready(checkpoints.restore(0, experiment.abstract_state()))
    restore = time.monotonic() - start - save
  if stop.received:
    sys.exit(128 + stop.received)
  text = f'saved in {save:.2f} s, restored and verified in {restore:.2f} s'
  text += ' (the first time, which starts Orbax)'
  return Finding('ok', f'{size_text(size)} {text}')


def data(experiment: Experiment) -> Finding:
  """Decodes a sample of both splits and checks its labels."""
  source = experiment.train_reader.source
  names, count = source.class_names or (), source.num_classes
  shown = names if len(names) < 7 else (*names[:3], '...', *names[-3:])
  shown = ', '.join(map(readable_name, shown))
  texts = [f'{count:,} classes' + (f' ({shown})' if shown else '')]
  broken = []
  for reader in (experiment.train_reader, experiment.eval_reader):
    errors, labels = _examine(reader)
    texts.append(
      f'{len(reader.source):,} {reader.source.split} (labels {min(labels)} to'
      f' {max(labels)} in {len(labels):,} of them)'
    )
    if errors:
      broken.append(f'{len(errors)} of {len(labels):,} are broken: {errors[0]}')
  text = f'{source.name}: {", ".join(texts)}'
  if broken:
    return Finding('FAIL', f'{text}. {" ".join(broken)} Prepare it again.')
  if count == 1000 and list(names) != sorted(names):
    text += '; classes are not sorted: published weights of ImageNet have their'
    text += ' logits in the order of sorted synsets'
    return Finding('warn', text)
  return Finding('ok', f'{text}; all records of the sample decode')


def _examine(reader: BatchReader) -> tuple[list[str], list[int]]:
  """Returns the errors and the labels of a sample of records."""
  source, errors, labels = reader.source, [], []
  size = min(_SAMPLE_SIZE, len(source))
  indices = np.linspace(0, len(source) - 1, size).astype(int).tolist()
  for index, record in zip(indices, source.read(indices), strict=True):
    labels.append(int(record['label']))
    try:
      source.label(index, record)
      decode_record(source, index, record)
    except InputError as error:
      errors.append(str(error))
  return errors, labels


def step(experiment: Experiment) -> Finding:
  """Compiles the update and times it on random images on the devices."""
  program = programs.ours(experiment, 'step')
  assert program.facts
  program.seconds(1)  # The first step also loads the program.
  seconds = _median(lambda: program.seconds(1), STEP_SECONDS)
  rate = program.batch_size / seconds
  text = f'{rate:,.0f} images/s, {1000 * seconds:,.1f} ms per step, batch'
  text += f' {program.batch_size:,}, compiled in {program.facts.seconds:.1f} s'
  return Finding('ok', text, rate)


def input_speed(experiment: Experiment, step_rate: float | None) -> Finding:
  """Compares the reading speed of the run with `step_rate`, in images/s."""
  if experiment.config['data.cache'] is not None:
    return Finding('ok', 'images are read once, at the start (data.cache)')
  loader = experiment.loader
  with input.open_reader(experiment) as images_per_second:
    rate = _median(lambda: images_per_second(loader.max_batches), INPUT_SECONDS)
  text = f'{rate:,.0f} images/s are read with num_workers={loader.num_workers},'
  text += f' num_threads={loader.num_threads}'
  if step_rate and rate < step_rate:
    text += f'; the devices need {step_rate / rate:.1f} times as many: raise'
    text += ' --config.data.num_workers or --config.data.num_threads'
    return Finding('warn', f'{text} ({os.cpu_count()} cores)')
  if step_rate:
    text += f', {rate / step_rate:.1f} times as many as the devices need'
  return Finding('ok', text)


def _median(measure: Callable[[], float], seconds: float) -> float:
  """Measures at least once and for `seconds`; returns the median."""
  values, end = [], time.monotonic() + seconds
  while not values or time.monotonic() < end:
    values.append(measure())
  return statistics.median(values)
