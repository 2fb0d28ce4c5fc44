"""What a run left in its workdir: config, curves, where it was made."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import os
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.run.provenance import read_starts, read_wall_seconds
from resnet.run.workdir import METRICS_FILE, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
  """A run, complete or not.

  Attributes:
    workdir: of the run.
    config: every field by dotted name.
    derived: what the config left to be worked out.
    lines: of metrics.jsonl.
    starts: of starts.jsonl.
    wall_seconds: from starts to ends; None after a kill.
  """

  workdir: str
  config: Mapping[str, Any]
  derived: Mapping[str, Any]
  lines: Sequence[Mapping[str, Any]]
  starts: Sequence[Mapping[str, Any]]
  wall_seconds: float | None

  @property
  def num_steps(self) -> int:
    """Updates of the whole run."""
    return self.derived['num_steps']

  @property
  def is_complete(self) -> bool:
    """Whether the last evaluation is there."""
    steps, _ = self.series('eval/top1')
    return bool(len(steps)) and steps[-1] == self.num_steps

  def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps [N] and values [N] of a metric; null is NaN."""
    points = [(x['step'], x[name]) for x in self.lines if name in x]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return (
      np.asarray(steps, np.int64),
      np.asarray([math.nan if v is None else v for v in values], np.float64),
    )

  def last(self, name: str) -> float | None:
    """Returns the newest value of a metric, None where there is none."""
    _, values = self.series(name)
    return float(values[-1]) if len(values) else None

  @property
  def train_seconds(self) -> float | None:
    """Time of all training steps; None where no interval has a rate.

    Compilation, evaluation and saving are not in it. Where an interval has no
    rate, as after a continuation, its steps count as the mean of the others.
    """
    steps, _ = self.series('train/loss')
    rates = dict(zip(*self.series('images_per_second'), strict=True))
    batch_size = self.config['batch_size']
    seconds = num_steps = 0
    for before, step in zip([0, *steps[:-1]], steps, strict=True):
      if step in rates:
        seconds += (step - before) * batch_size / rates[step]
        num_steps += step - before
    return float(seconds / num_steps * steps[-1]) if num_steps else None

  @property
  def hardware(self) -> list[str]:
    """Where it was made, in the order of its starts."""
    return list(dict.fromkeys(start['hardware'] for start in self.starts))

  @property
  def commits(self) -> list[str]:
    """By what code, in the order of its starts."""
    return list(
      dict.fromkeys(start['commit'] or 'unknown' for start in self.starts)
    )


def read_history(workdir: str) -> History:
  """Reads a workdir.

  Raises:
    InputError: it holds no run, or damaged metrics. A run that was only begun
      has no lines.
  """
  saved = read_config(workdir)
  if saved is None:
    raise InputError(f'{workdir} holds no run: there is no config.json.')
  path = os.path.join(workdir, METRICS_FILE)
  try:
    with open(path) as file:
      # A kill may have left half a line at the end.
      lines = [json.loads(x) for x in file if x.endswith('\n')]
  except FileNotFoundError:
    lines = []
  except (OSError, ValueError) as error:
    raise InputError(f'{path} cannot be read: {error}') from None
  if not all(isinstance(line, dict) and 'step' in line for line in lines):
    raise InputError(f'{path} has a line that this program did not write.')
  return History(
    workdir=workdir,
    config=saved['config'],
    derived=saved['derived'],
    lines=lines,
    starts=read_starts(workdir),
    wall_seconds=read_wall_seconds(workdir),
  )
