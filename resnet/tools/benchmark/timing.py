"""Takes measurements in turn, so that other load affects all of them alike."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import os
from typing import Any

import numpy as np

from resnet.files import write_atomically
from resnet.run.provenance import cpu_model
from resnet.tools import command

_COUNTS = {
  'rounds': 'measurements of each program, in turn',
  'batches': 'batches per round',
  'saves': 'saves of the state',
}


def add_arguments(
  parser: argparse.ArgumentParser, counts: Mapping[str, int]
) -> None:
  """Adds --json and a flag for each count, with its default."""
  for count, default in counts.items():
    parser.add_argument(
      f'--{count}',
      type=command.positive,
      default=default,
      metavar='N',
      help=f'{_COUNTS[count]}; default: {default}',
    )
  parser.add_argument(
    '--json', metavar='FILE', help='write the figures to FILE'
  )


def save_figures(path: str | None, figures: dict[str, Any]) -> None:
  """Writes figures and the machine's name as JSON, unless `path` is None."""
  if path:
    text = json.dumps({'machine': machine(), **figures}, indent=2)
    write_atomically(path, text + '\n')


def in_turn(
  measurements: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Returns the values of all rounds by name; odd rounds run in reverse."""
  values: dict[str, list[float]] = {name: [] for name in measurements}
  for i in range(rounds):
    for name in list(measurements)[:: -1 if i % 2 else 1]:
      values[name].append(measurements[name]())
  return values


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns the median and the quartiles, 'low' and 'high'."""
  low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
  return {'median': median, 'low': low, 'high': high}


def ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
  """Returns the `spread` of the ratios value / other of all rounds."""
  return spread([a / b for a, b in zip(values, others, strict=True)])


def machine() -> str:
  """Returns the model of the processor and the number of usable cores."""
  return f'{cpu_model()}, {len(os.sched_getaffinity(0))} cores'
