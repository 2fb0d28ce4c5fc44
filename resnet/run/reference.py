"""A stored curve with its seed band, and whether a run is inside it."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np
from scipy import special

from resnet.errors import InputError

# Outside of how many standard deviations a value is worth a warning: a good run
# has a chance of 0.27 % at each value that is compared.
MAX_SIGMA = 3.0
# The loss tells early, the accuracy what one wants to know.
METRICS = ('train/loss', 'eval/top1')
_LEAST_SEEDS = 3

Series = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """What runs of one config measured at the same steps.

  Attributes:
    num_seeds: how many runs it was made from.
    config: fields that the runs had in common, by dotted name.
    bands: (mean, standard deviation over seeds) by metric and step.
  """

  num_seeds: int
  config: Mapping[str, Any]
  bands: Mapping[str, Mapping[int, tuple[float, float]]]

  def sigmas(self, step: int, metric: str, value: float) -> float | None:
    """Returns how many standard deviations `value` is above the mean.

    Of few seeds the deviation itself is not well known, so this is Student's t
    of a new run against the mean of n = `num_seeds`,

      t = (value - mean) / (std * sqrt(1 + 1 / n)),

    as the number of standard deviations at which a normal distribution has the
    same tail as that of t with n - 1 degrees of freedom. None where the
    reference has no value; a value that is not finite is infinitely far off.
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
    """Returns a line for each value that has left the band."""
    lines = []
    for metric in METRICS:
      sigma = metric in values and self.sigmas(step, metric, values[metric])
      if sigma and abs(sigma) > MAX_SIGMA:
        lines.append(
          f'warning: epoch {epoch:.1f}: {metric} {values[metric]:.4f} is'
          f' {abs(sigma):.1f} sigma {"above" if sigma > 0 else "below"}'
          f' reference ({self.bands[metric][step][0]:.4f})'
        )
    return lines

  def describe(self, config: Mapping[str, Any]) -> str:
    """Returns what the reference is, and where `config` is another one."""
    differences = [
      f'{field} {value!r} there, {config.get(field)!r} here'
      for field, value in self.config.items()
      if config.get(field) != value
    ]
    other = f'; of another config: {"; ".join(differences)}'
    return f'Reference of {self.num_seeds} seeds{other if differences else ""}.'

  def save_text(self) -> str:
    """Returns the text of a file that `read_reference` reads."""
    bands = {
      metric: {
        'step': list(band),
        'mean': [mean for mean, _ in band.values()],
        'std': [std for _, std in band.values()],
      }
      for metric, band in self.bands.items()
    }
    fields = {
      'num_seeds': self.num_seeds,
      'config': dict(self.config),
      'bands': bands,
    }
    return json.dumps(fields, indent=1) + '\n'


def make_reference(
  configs: Sequence[Mapping[str, Any]],
  curves: Sequence[Mapping[str, Series]],
  num_eval_examples: int,
) -> Reference:
  """Returns the band of runs that differ in their seed only.

  Args:
    configs: of the runs.
    curves: steps and values by metric, of each run.
    num_eval_examples: an accuracy has a deviation of one example at least.

  Raises:
    InputError: they differ in more, have too few seeds, or no common steps.
  """
  common = dict(configs[0])
  seeds = {config['seed'] for config in configs}
  for config in configs[1:]:
    for field in sorted(config.keys() | common.keys()):
      if field != 'seed' and config.get(field) != configs[0].get(field):
        raise InputError(
          f'The runs differ in {field}: {configs[0].get(field)!r} and'
          f' {config.get(field)!r}; a band is that of seeds only.'
        )
  if len(seeds) < _LEAST_SEEDS or len(seeds) < len(configs):
    raise InputError(
      f'A band needs at least {_LEAST_SEEDS} runs, each of its own seed; these'
      f' are {len(configs)} of {len(seeds)}.'
    )
  common.pop('seed')
  bands = {}
  for metric in METRICS:
    runs = [
      dict(zip(*map(list, curve[metric]), strict=True)) for curve in curves
    ]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
      raise InputError(f'The runs have no step with {metric} in common.')
    values = np.asarray([[run[step] for step in steps] for run in runs])
    if not np.isfinite(values).all():
      raise InputError(
        f'{metric} of a run is not finite: that is no reference.'
      )
    std = values.std(axis=0, ddof=1)
    if metric == 'eval/top1':
      std = np.maximum(std, 1 / num_eval_examples)
    std = np.maximum(std, 1e-9)
    bands[metric] = {
      int(step): (float(mean), float(deviation))
      for step, mean, deviation in zip(
        steps, values.mean(axis=0), std, strict=True
      )
    }
  return Reference(num_seeds=len(seeds), config=common, bands=bands)


def read_reference(path: str) -> Reference:
  """Reads a file of `python -m resnet.tools.reference`.

  Raises:
    InputError: it cannot be read, or is not one.
  """
  try:
    with open(path) as file:
      fields = json.load(file)
    bands = {
      metric: {
        int(step): (float(mean), float(std))
        for step, mean, std in zip(
          band['step'], band['mean'], band['std'], strict=True
        )
      }
      for metric, band in fields['bands'].items()
    }
    reference = Reference(
      num_seeds=int(fields['num_seeds']), config=fields['config'], bands=bands
    )
    points = [point for band in bands.values() for point in band.values()]
    if reference.num_seeds < 2 or not isinstance(reference.config, dict):
      raise ValueError('it has no seeds or no config')
    if not all(
      math.isfinite(mean) and 0 < std < math.inf for mean, std in points
    ):
      raise ValueError('a mean is not finite, or a deviation not positive')
  except OSError as error:
    raise InputError(
      f'--reference={path} cannot be read: {error.strerror}.'
    ) from None
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'--reference={path} is no file of resnet.tools.reference: {error!r}.'
    ) from None
  return reference
