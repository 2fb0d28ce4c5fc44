"""Is the machine good for a run? Each check returns a `Finding`.

A check raises where it cannot go on; `resnet.tools.doctor` makes that a FAIL.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, Literal

import jax
import numpy as np
from packaging.requirements import Requirement

from resnet import backend
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.run.checkpoint import FOLDER, Checkpoints
from resnet.run.provenance import commit
from resnet.run.signals import stop_signals

REQUIREMENTS = pathlib.Path(__file__).parents[3] / 'requirements.txt'
_MIN_PYTHON = (3, 11)  # The Makefile's.
_SHOWN = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain'),
  *('tensorflow-datasets', 'numpy'),
)


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a check found.

  Attributes:
    status: 'skip': a check that this one depends on has failed.
    text: what was seen, and what to mend.
    values: the numbers in the text, for programs.
  """

  status: Literal['ok', 'warn', 'FAIL', 'skip']
  text: str
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def versions(requirements: pathlib.Path = REQUIREMENTS) -> Finding:
  """Python and all of `requirements`, against what that file asks for."""
  wrong, found = [], {}
  if sys.version_info < _MIN_PYTHON:
    wrong.append(f'Python is not >={".".join(map(str, _MIN_PYTHON))}')
  lines = [x.partition('#')[0] for x in requirements.read_text().splitlines()]
  required = [Requirement(line) for line in lines if line.strip()]
  for requirement in [*required, Requirement('jaxlib')]:
    try:
      version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
      wrong.append(f'{requirement.name} is missing')
      continue
    found[requirement.name] = version
    if not requirement.specifier.contains(version, prereleases=True):
      wrong.append(f'{requirement.name} {version} is not in {requirement}')
  code, shown = commit(), {'Python': platform.python_version()}
  shown |= {name: found[name] for name in _SHOWN if name in found}
  text = ', '.join(f'{name} {version}' for name, version in shown.items())
  text += f'; commit {code}' if code else '; code without git'
  values = {'versions': {**shown, **found}, 'commit': code}
  if wrong:
    mend = f'pip install --requirement {requirements}'
    return Finding('FAIL', f'{", ".join(wrong)}: {mend} ({text})', values)
  return Finding('ok', text, values)


def devices() -> Finding:
  """What JAX computes on, and the memory of the fullest device."""
  found = backend.devices()
  kind, platform_ = found[0].device_kind, found[0].platform
  text = f'{len(found)} x {kind} ({platform_})'
  values = {'platform': platform_, 'kind': kind, 'count': len(found)}
  stats = [device.memory_stats() for device in jax.local_devices()]
  sizes = [
    (x['bytes_limit'] - x['bytes_in_use'], x['bytes_limit'])
    for x in stats
    if x and 'bytes_limit' in x
  ]
  if sizes:
    free, limit = min(sizes)
    values |= {'free_bytes': free, 'limit_bytes': limit}
    text += f', {size_text(free)} of {size_text(limit)} free on each'
  names = {x.metadata['Name'] for x in importlib.metadata.distributions()}
  unused = sorted(
    x for x in names if str(x).lower().startswith(('jax-cuda', 'libtpu'))
  )
  if platform_ == 'cpu' and unused:
    return Finding(
      'warn',
      f'{text}, but {", ".join(unused)} is installed: look at the driver'
      ' (nvidia-smi) and at JAX_PLATFORMS',
      values,
    )
  return Finding('ok', text, values)


def disk(experiment: Experiment, workdir: str) -> Finding:
  """Free space, against the checkpoints that the run will keep."""
  size = state_bytes(experiment)
  # Besides the latest: the best one, and one that is being written.
  count = experiment.keep_checkpoints + 2
  held = sum(
    path.stat().st_size
    for path in pathlib.Path(workdir, FOLDER).rglob('*')
    if path.is_file()
  )
  needed = max(count * size - held, 0)
  folder = nearest_folder(workdir)
  free = free_bytes(folder)
  values = {'free_bytes': free, 'needed_bytes': needed, 'state_bytes': size}
  text = (
    f'{size_text(free)} free in {folder}, {size_text(needed)} needed'
    f' ({count} checkpoints of {size_text(size)})'
  )
  if free < needed:
    mend = 'make room, name another --workdir, or keep fewer:'
    return Finding(
      'FAIL', f'{text}: {mend} --config.keep_checkpoints=1', values
    )
  return Finding('ok', text, values)


def free_bytes(folder: str) -> int:
  return shutil.disk_usage(folder).free


def state_bytes(experiment: Experiment) -> int:
  leaves = jax.tree.leaves(experiment.abstract_state())
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def checkpoint(experiment: Experiment, workdir: str) -> Finding:
  """Saves the first state beside the workdir and reads it back."""
  state, size = experiment.create_state(), state_bytes(experiment)
  beside = nearest_folder(os.path.dirname(os.path.abspath(workdir)))
  with (
    _signals_wait(),
    _temporary_folder(beside) as folder,
    contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints,
  ):
    start = time.monotonic()
    checkpoints.save(state, None)
    checkpoints.finish(expected_step=0)
    saved = time.monotonic()
    restored = checkpoints.restore(0, experiment.abstract_state())
    jax.block_until_ready(restored)
    end = time.monotonic()
  is_same = all(
    np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(
      jax.tree.leaves(state), jax.tree.leaves(restored), strict=True
    )
  )
  save, restore = saved - start, end - saved
  values = {'bytes': size, 'save_seconds': save, 'restore_seconds': restore}
  text = (
    f'{size_text(size)} saved in {save:.2f} s ({size / save / 1e6:,.1f} MB/s),'
    f' read in {restore:.2f} s ({size / restore / 1e6:,.1f} MB/s)'
  )
  if not is_same:
    mend = 'other bits came back; look at the disk, use no checkpoint of it'
    return Finding('FAIL', f'{text}: {mend}', values)
  return Finding('ok', f'{text}, bit for bit', values)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
  """Signals that stop a run end the program, but not before the block ends.

  Orbax, interrupted in a save, would go on to write behind our back.
  """
  received: list[int] = []

  def receive(number: int, frame: Any) -> None:
    del frame
    received.append(number)

  previous = {
    number: signal.signal(number, receive) for number in stop_signals()
  }
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    if received:
      sys.exit(128 + received[0])


@contextlib.contextmanager
def _temporary_folder(parent: str) -> Iterator[str]:
  try:
    folder = tempfile.mkdtemp(prefix='.doctor.', dir=parent)
  except OSError as error:
    raise InputError(
      f'{parent} cannot be written: {error.strerror}. Name another --workdir.'
    ) from None
  try:
    yield folder
  finally:
    shutil.rmtree(folder)


def nearest_folder(path: str) -> str:
  """Returns the folder, or the nearest above it that there is."""
  path = os.path.abspath(path)
  while not os.path.isdir(path):
    path = os.path.dirname(path)
  return path


def size_text(num_bytes: float) -> str:
  """Returns '1.5 MB' for 1,500,000 bytes."""
  power = 0
  while num_bytes >= 1000 and power < 4:
    num_bytes, power = num_bytes / 1000, power + 1
  return f'{num_bytes:.1f} {("B", "kB", "MB", "GB", "TB")[power]}'
