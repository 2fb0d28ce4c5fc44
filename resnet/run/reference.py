"""Warns when a run leaves the band of earlier runs with other seeds."""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from scipy import special

from resnet.files import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """Mean and standard deviation of runs that differ only in their seeds.

  Attributes:
    num_seeds: number of runs.
    config: fields that the runs share, by dotted name.
    bands: mean and standard deviation over the seeds, by metric and step.
  """

  num_seeds: int
  config: Mapping[str, Any]
  bands: Mapping[str, Mapping[int, tuple[float, float]]]

  def sigmas(self, step: int, metric: str, value: float) -> float | None:
    """Returns how many standard deviations `value` is above the mean.

    It is Student's t of a new run against the mean of n = `num_seeds` runs,

      t = (value - mean) / (std * sqrt(1 + 1 / n)),

    converted to the number of standard deviations at which a normal
    distribution has the same tail as Student's t with n - 1 degrees of freedom.
    Returns None where the reference has no value, and infinity for a value that
    is not finite.
    """
    if step not in self.bands.get(metric, {}):
      return None
    mean, std = self.bands[metric][step]
    if not math.isfinite(value):
      return math.inf
    t = (value - mean) / (std * math.sqrt(1 + 1 / self.num_seeds))
    tail = special.stdtr(self.num_seeds - 1, -abs(t))
    return math.copysign(-special.ndtri(tail), t)

  def warnings(
    self, step: int, epoch: float, values: Mapping[str, float]
  ) -> list[str]:
    """Returns a line for each value outside the band."""
    lines = []
    for metric, value in values.items():
      sigma = self.sigmas(step, metric, value) or 0.0
      if abs(sigma) > 3:  # True for 0.27 % of the values of a good run.
        lines.append(
          f'warning: epoch {epoch:.1f}: {metric} {value:.4f} is'
          f' {abs(sigma):.1f} sigma {"above" if sigma > 0 else "below"}'
          f' reference ({self.bands[metric][step][0]:.4f})'
        )
    return lines

  def describe(self, config: Mapping[str, Any]) -> str:
    """Returns a line with the fields in which `config` differs."""
    fields = [k for k, value in self.config.items() if config.get(k) != value]
    other = f'; the config differs in {", ".join(fields)}' if fields else ''
    return f'Reference of {self.num_seeds} seeds{other}.'


def read_reference(path: str) -> Reference:
  """Reads a file written by `python -m resnet.tools.reference`."""
  what = f'--reference={path} was not written by resnet.tools.reference'
  with reading(what), open(path) as file:
    fields = json.load(file)
    for metric, band in fields['bands'].items():
      points = zip(band['mean'], band['std'], strict=True)
      fields['bands'][metric] = dict(zip(band['step'], points, strict=True))
    return Reference(**fields)
