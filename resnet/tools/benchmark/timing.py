"""Measurements in turn, so that a load of the machine hits all alike."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
import platform
import re
import statistics


def in_turn(
  measurements: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Returns what each one measured in each round; every other one backwards.

  Args:
    measurements: by name, what measures once.
    rounds: at least 1.
  """
  values: dict[str, list[float]] = {name: [] for name in measurements}
  for i in range(rounds):
    for name in list(measurements)[:: -1 if i % 2 else 1]:
      values[name].append(measurements[name]())
  return values


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns the median and the quartiles, 'low' and 'high'."""
  if len(values) == 1:
    return {'median': values[0], 'low': values[0], 'high': values[0]}
  low, median, high = statistics.quantiles(values, n=4, method='inclusive')
  return {'median': median, 'low': low, 'high': high}


def pair_ratios(
  values: Sequence[float], others: Sequence[float]
) -> list[float]:
  """Returns value / other of each round."""
  return [a / b for a, b in zip(values, others, strict=True)]


def machine() -> str:
  """Returns the make of the processor, and the cores that are ours."""
  processor = None
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    processor = re.search(r'^model name\s*: *(.*?)\s*$', file.read(), re.M)
  name = processor[1] if processor else platform.machine()
  return f'{name}, {len(os.sched_getaffinity(0))} cores'
