"""What is to be prepared, and whether the disk holds it."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from resnet.data.prepare.encoding import Encoding
from resnet.data.sources.base import Source
from resnet.errors import InputError

_SHARD_BYTES = 2**27
# So that a small set is written in parallel, too.
_LEAST_SHARDS = 8
# Of a record besides the image.
_RECORD_BYTES = 200
# Share of the estimate that must be free besides.
_SPARE = 0.05
_NUM_SAMPLES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A set to be written.

  Attributes:
    name: of the set, as TFDS has it.
    folder: NAME/VERSION, where it will be.
    splits: what to write, by name.
    encoding: how.
    origin: what the images come from, in words and numbers; it must be equal
      for a job to go on.
    skip_bad: leave broken images out instead of stopping.
  """

  name: str
  folder: str
  splits: Mapping[str, Source]
  encoding: Encoding
  origin: Mapping[str, Any]
  skip_bad: bool = False

  @property
  def unfinished(self) -> str:
    return f'{self.folder}.incomplete'

  def plan(self, num_bytes: float) -> dict[str, Any]:
    """Returns what decides the bytes; `num_bytes` is the estimate of all."""
    total = sum(map(len, self.splits.values()))
    shards = {
      name: min(
        len(source),
        max(
          _LEAST_SHARDS,
          -(-int(num_bytes * len(source) / total) // _SHARD_BYTES),
        ),
      )
      for name, source in self.splits.items()
    }
    names = next(iter(self.splits.values())).class_names
    return {
      'origin': dict(self.origin),
      'encoding': dataclasses.asdict(self.encoding),
      'examples': {name: len(source) for name, source in self.splits.items()},
      'shards': shards,
      'class_names': names and list(names),
      'skip_bad': self.skip_bad,
    }


def check_class_names(names: Sequence[str]) -> None:
  """Checks that TFDS will read the names as they are, from a line each.

  Raises:
    InputError: a name has a line break, blanks around it, no letters, or
      letters that are not UTF-8.
  """
  for name in names:
    try:
      name.encode()
      problem = ''
    except UnicodeEncodeError:
      problem = 'is not UTF-8'
    if name != name.strip() or not name or len(name.splitlines()) > 1:
      problem = 'is not one line without blanks around it'
    if problem:
      raise InputError(
        f'The class name {name!r} {problem}, and a prepared set cannot hold it:'
        ' rename the class.'
      )


def estimate_bytes(job: Job) -> int:
  """Returns about how much disk the set will take, from a few images.

  Raises:
    InputError: pixels shall be stored, and images differ in size.
  """
  total = 0.0
  for source in job.splits.values():
    indices = np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int).tolist()
    indices = sorted(set(indices))
    sizes = []
    for record in source.read(indices):
      # A broken one is named when it is written.
      with contextlib.suppress(ValueError):
        sizes.append(_num_bytes(job.encoding.encode(record['image'])))
    total += len(source) * float(np.mean(sizes or [0]))
  return int(total)


def _num_bytes(image: bytes | np.ndarray) -> int:
  size = len(image) if isinstance(image, bytes) else image.nbytes
  return size + _RECORD_BYTES


def check_disk(job: Job, num_bytes: int) -> None:
  """Checks, before anything is written, that the set will fit.

  Raises:
    InputError: it will not, or the folder cannot be written.
  """
  folder = os.path.abspath(job.folder)
  while not os.path.exists(folder):
    folder = os.path.dirname(folder)
  if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
    raise InputError(f'{job.folder} cannot be written: see {folder}.')
  needed = int(num_bytes * (1 + _SPARE)) - _size(job.unfinished)
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise InputError(
      f'{job.folder} needs about {needed / 1e9:,.1f} GB and'
      f' {free / 1e9:,.1f} GB are free: name another --out, or store less'
      ' (--resize=256).'
    )


def _size(folder: str) -> int:
  paths = pathlib.Path(folder).glob('*.array_record-*')
  return sum(path.stat().st_size for path in paths)
