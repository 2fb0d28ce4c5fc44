"""Are the machine and the data good for a run? Each check returns a `Finding`.

A check raises where it cannot go on; `resnet.tools.doctor` makes that a FAIL.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from typing import Literal

import jax
import numpy as np
from packaging.requirements import Requirement

from resnet import backend
from resnet.data.host.decode import decode_record
from resnet.data.host.reader import BatchReader
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.run.checkpoint import FOLDER, Checkpoints
from resnet.run.provenance import commit
from resnet.run.stopping import StopSignal
from resnet.tools.benchmark import input, programs
from resnet.tools.command import size_text

REQUIREMENTS = pathlib.Path(__file__).parents[3] / 'requirements.txt'
_SHOWN = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain'),
  *('tensorflow-datasets', 'numpy'),
)
_SAMPLE_SIZE = 256  # Records of a split.
STEP_SECONDS, _MAX_STEPS = 5.0, 50
INPUT_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a check found.

  Attributes:
    status: 'skip': a check that this one depends on has failed.
    text: what was seen, and what to mend.
    rate: images/s, where that is what was measured.
  """

  status: Literal['ok', 'warn', 'FAIL', 'skip']
  text: str
  rate: float | None = None


def versions(requirements: pathlib.Path = REQUIREMENTS) -> Finding:
  """The packages of `requirements`, against what that file asks for."""
  wrong, found = [], {'Python': platform.python_version()}
  lines = [x.partition('#')[0] for x in requirements.read_text().splitlines()]
  required = [Requirement(line) for line in lines if line.strip()]
  for requirement in [*required, Requirement('jaxlib')]:
    name = requirement.name
    try:
      found[name] = version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      wrong.append(f'{name} is missing')
      continue
    if not requirement.specifier.contains(version, prereleases=True):
      wrong.append(f'{name} {version} is not in {requirement}')
  shown = [f'{x} {found[x]}' for x in ('Python', *_SHOWN) if x in found]
  code = f'commit {commit()}' if commit() else 'code without git'
  text = f'{", ".join(shown)}; {code}'
  if wrong:
    mend = f'pip install --requirement {requirements}'
    return Finding('FAIL', f'{", ".join(wrong)}: {mend} ({text})')
  return Finding('ok', text)


def devices() -> Finding:
  """What JAX computes on, and the memory of the fullest device."""
  found = backend.devices()
  kind, platform_ = found[0].device_kind, found[0].platform
  text = f'{len(found)} x {kind} ({platform_})'
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if all('bytes_limit' in x for x in stats):
    free, limit = min(
      (x['bytes_limit'] - x['bytes_in_use'], x['bytes_limit']) for x in stats
    )
    text += f', {size_text(free)} of {size_text(limit)} free on each'
  names = {x.metadata['Name'] or '' for x in importlib.metadata.distributions()}
  unused = [x for x in names if x.lower().startswith(('jax-cuda', 'libtpu'))]
  if platform_ == 'cpu' and unused:
    text += f', but {", ".join(sorted(unused))} is installed: look at the'
    text += ' driver (nvidia-smi) and at JAX_PLATFORMS'
    return Finding('warn', text)
  return Finding('ok', text)


def disk(experiment: Experiment, workdir: str) -> Finding:
  """Free space, against the checkpoints that the run will keep."""
  size = state_bytes(experiment)
  # Besides the latest: the best one, and one that is being written.
  count = experiment.config['keep_checkpoints'] + 2
  files = pathlib.Path(workdir, FOLDER).rglob('*')
  held = sum(path.stat().st_size for path in files if path.is_file())
  needed = max(count * size - held, 0)
  folder = _nearest_folder(workdir)
  free = free_bytes(folder)
  text = (
    f'{size_text(free)} free in {folder}, {size_text(needed)} needed'
    f' ({count} checkpoints of {size_text(size)})'
  )
  if free < needed:
    text += ': make room, name another --workdir, or keep fewer:'
    text += ' --config.keep_checkpoints=1'
    return Finding('FAIL', text)
  return Finding('ok', text)


def free_bytes(folder: str) -> int:
  return shutil.disk_usage(folder).free


def state_bytes(experiment: Experiment) -> int:
  leaves = jax.tree.leaves(experiment.abstract_state())
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _nearest_folder(path: str) -> str:
  """Returns the folder, or the nearest above it that there is."""
  path = os.path.abspath(path)
  while not os.path.isdir(path):
    path = os.path.dirname(path)
  return path


def checkpoint(experiment: Experiment, workdir: str) -> Finding:
  """Saves the first state beside the workdir and reads it back.

  Its checksum is compared, as always. A signal waits until the block has ended:
  Orbax, interrupted in a save, would go on to write behind our back.
  """
  state, size = experiment.create_state(), state_bytes(experiment)
  beside = _nearest_folder(os.path.dirname(os.path.abspath(workdir)))
  try:
    place = tempfile.TemporaryDirectory(prefix='.doctor.', dir=beside)
  except OSError as error:
    raise InputError(
      f'{beside} cannot be written: {error.strerror}. Name another --workdir.'
    ) from None
  with (
    StopSignal() as stop,
    place as folder,
    contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints,
  ):
    start = time.monotonic()
    checkpoints.save(state, None)
    checkpoints.finish(expected_step=0)
    save = time.monotonic() - start
    restored = checkpoints.restore(0, experiment.abstract_state())
    jax.block_until_ready(restored)
    restore = time.monotonic() - start - save
  if stop.received:
    sys.exit(128 + stop.received)
  return Finding(
    'ok',
    f'{size_text(size)} saved in {save:.2f} s ({size / save / 1e6:,.1f} MB/s),'
    f' read in {restore:.2f} s ({size / restore / 1e6:,.1f} MB/s), bit for bit',
  )


def data(experiment: Experiment) -> Finding:
  """Both splits: every record of a sample has a good label and an image."""
  texts, broken = [], []
  for reader in (experiment.train_reader, experiment.eval_reader):
    source = reader.source
    errors, labels = _examine(reader)
    texts.append(
      f'{len(source):,} {source.split} (labels {min(labels)} to {max(labels)}'
      f' in {len(labels):,} of them)'
    )
    if errors:
      broken.append(f'{len(errors)} of {len(labels):,} are broken: {errors[0]}')
  text = f'{experiment.train_reader.source.name}: {", ".join(texts)}'
  if broken:
    text += f'. {" ".join(broken)} Prepare the set anew.'
    return Finding('FAIL', text)
  return Finding('ok', f'{text}; all of these decode')


def _examine(reader: BatchReader) -> tuple[list[str], list[int]]:
  """Returns what is wrong in a sample, and its labels."""
  source = reader.source
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
  return errors, labels


def classes(experiment: Experiment) -> Finding:
  """The names of the labels, in order."""
  source = experiment.train_reader.source
  names, count = source.class_names, source.num_classes
  if names is None:
    return Finding('ok', f'{count:,} without names')
  shown = ', '.join(names if count < 7 else (*names[:3], '...', *names[-3:]))
  text = f'{count:,}: {shown}'
  if len(names) != count:
    return Finding('FAIL', f'{text}, but {len(names):,} names')
  if repeated := sorted({name for name in names if names.count(name) > 1}):
    return Finding('warn', f'{text}; more than once: {repeated[0]}')
  if count == 1000 and list(names) != sorted(names):
    # Published weights of ImageNet have their logits in that order.
    text += '; not sorted: published weights of ImageNet are for sorted synsets'
    return Finding('warn', text)
  return Finding('ok', text)


def step(experiment: Experiment) -> Finding:
  """Compiles the update and times it on noise that is on the devices."""
  program = programs.ours(experiment, 'step')
  assert program.facts
  # The first step also loads the program: it is not counted.
  program.seconds(1)
  seconds: list[float] = []
  while sum(seconds) < STEP_SECONDS and len(seconds) < _MAX_STEPS:
    seconds.append(program.seconds(1))
  median = float(np.median(seconds))
  rate = program.batch_size / median
  return Finding(
    'ok',
    f'{rate:,.0f} images/s, {1000 * median:,.1f} ms a step of'
    f' {program.batch_size:,} (median of {len(seconds)}), compiled in'
    f' {program.facts.seconds:.1f} s',
    rate,
  )


def input_speed(experiment: Experiment, step_rate: float | None) -> Finding:
  """Reads as the run would and compares with `step_rate`, images/s."""
  loader, rates = experiment.loader, []
  end = time.monotonic() + INPUT_SECONDS
  with input.open_reader(experiment) as images_per_second:
    while not rates or time.monotonic() < end:
      rates.append(images_per_second(loader.max_batches))
  rate = float(np.median(rates))
  text = (
    f'{rate:,.0f} images/s are read with num_workers={loader.num_workers},'
    f' num_threads={loader.num_threads}'
  )
  if step_rate is None:
    return Finding('ok', text)
  share = rate / step_rate
  if share < 1:
    text += f'; the devices take {1 / share:.1f} times as many: raise'
    text += ' --config.data.num_workers or --config.data.num_threads'
    text += f' ({os.cpu_count()} cores)'
    return Finding('warn', text)
  return Finding('ok', f'{text}, {share:.1f} times what a step takes')
