"""Measurements in turn, so that a load of the machine hits all alike."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
import platform
import statistics


def in_turn(
  roads: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Returns what each road measured in each round; every other one backwards.

  Args:
    roads: by name, what measures once.
    rounds: at least 1.
  """
  values: dict[str, list[float]] = {name: [] for name in roads}
  for i in range(rounds):
    for name in list(roads)[:: -1 if i % 2 else 1]:
      values[name].append(roads[name]())
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
  return f'{_processor()}, {len(os.sched_getaffinity(0))} cores'


def _processor() -> str:
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.machine()
