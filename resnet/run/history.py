"""Reads the workdir of a run: config, metrics, hardware, commits."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from resnet.checkpoint_folder import score
from resnet.errors import InputError
from resnet.files import read_json_lines
from resnet.run.provenance import read_starts
from resnet.run.workdir import METRICS_FILE, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
  """A run, complete or not.

  Attributes:
    workdir: folder of the run.
    config: all fields by dotted name.
    derived: numbers that follow from config and data, such as `num_steps`.
    lines: lines of metrics.jsonl.
    starts: lines of starts.jsonl, one for each start of the run.
  """

  workdir: str
  config: Mapping[str, Any]
  derived: Mapping[str, Any]
  lines: Sequence[Mapping[str, Any]]
  starts: Sequence[Mapping[str, Any]]

  @property
  def num_steps(self) -> int:
    """Number of updates of the complete run."""
    return self.derived['num_steps']

  @property
  def is_complete(self) -> bool:
    """Whether the run has its last evaluation."""
    steps, _ = self.series('eval/top1')
    return bool(len(steps)) and steps[-1] == self.num_steps

  def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps [N] and values [N] of a metric; null becomes NaN."""
    points = [(x['step'], x[name]) for x in self.lines if name in x]
    # NumPy converts None to NaN.
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps.astype(np.int64), values

  def epochs(self, steps: Any) -> Any:
    """Returns the epochs that end with these steps."""
    return steps / self.derived['steps_per_epoch']

  @property
  def best_evaluation(self) -> Mapping[str, Any] | None:
    """The line of the evaluation with the highest score; None if none has."""
    found = [x for x in self.lines if 'eval/top1' in x and score(x) is not None]
    return max(found, key=score, default=None)

  def last(self, name: str) -> float | None:
    """Returns the last value of a metric, or None if there is none."""
    _, values = self.series(name)
    return float(values[-1]) if len(values) else None

  def distinct(self, fact: str) -> list[str]:
    """Returns the distinct values of 'hardware' or 'commit' over all starts."""
    values = (start[fact] or 'unknown' for start in self.starts)
    return list(dict.fromkeys(values))


def read_history(workdir: str) -> History:
  """Reads a workdir; raises an InputError if it holds no intact run."""
  saved = read_config(workdir)
  if saved is None:
    raise InputError(f'{workdir} holds no run: it has no config.json.')
  return History(
    workdir=workdir,
    config=saved['config'],
    derived=saved['derived'],
    lines=read_json_lines(os.path.join(workdir, METRICS_FILE)),
    starts=read_starts(workdir),
  )
