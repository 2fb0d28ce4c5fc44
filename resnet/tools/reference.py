"""Writes a reference band: the spread of complete runs with several seeds.

  python -m resnet.tools.reference runs/digits_seed* --output=band.json

Training warns when a run leaves the band: python main.py --reference=band.json
"""

import argparse
import json
import os
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.fields import FREE_FIELDS
from resnet.files import write_atomically, writing
from resnet.run.history import History, read_history
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Checks that the runs are comparable and writes their band."""
  histories = [read_history(workdir) for workdir in args.workdirs]
  free = {'seed', *FREE_FIELDS}
  config = {k: v for k, v in histories[0].config.items() if k not in free}
  for history in histories:
    if not history.is_complete:
      raise InputError(f'{history.workdir} is not complete: train it first.')
    for field, value in config.items():
      if (other := history.config.get(field)) != value:
        raise InputError(
          f'The runs differ in {field}: {value!r} and {other!r}. Only their'
          ' seeds may differ: leave out the runs that differ.'
        )
  seeds = {history.config['seed'] for history in histories}
  if not 3 <= len(seeds) == len(histories):
    raise InputError(
      'A band needs at least 3 runs with different seeds, not'
      f' {len(histories)} runs with {len(seeds)} seeds.'
    )
  # The loss shows a deviation early; the accuracy is the result.
  bands = {x: _band(histories, x) for x in ('train/loss', 'eval/top1')}
  fields = {'num_seeds': len(seeds), 'config': config, 'bands': bands}
  with writing(f'--output={args.output}'):
    os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
    write_atomically(args.output, json.dumps(fields, indent=1) + '\n')
  print(f'{args.output}: {len(seeds)} seeds')


def _band(histories: list[History], metric: str) -> dict[str, Any]:
  """Returns the mean and deviation of a metric at the steps all runs share."""
  curves = [dict(zip(*h.series(metric), strict=True)) for h in histories]
  steps = sorted(map(int, set.intersection(*map(set, curves))))
  values = np.array([[curve[step] for step in steps] for curve in curves])
  if not np.isfinite(values).all():
    raise InputError(f'{metric} of a run is not finite: leave that run out.')
  # An accuracy changes in steps of one image, so `std` is at least that.
  one = 1 / histories[0].derived['num_eval_examples']
  std = np.maximum(values.std(0, ddof=1), one if 'top1' in metric else 1e-9)
  return {'step': steps, 'mean': values.mean(0).tolist(), 'std': std.tolist()}


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('reference', __doc__)
  add = result.add_argument
  add('workdirs', nargs='+', metavar='WORKDIR', help='folders of the runs')
  add('--output', required=True, metavar='FILE', help='the band, as JSON')
  return result


if __name__ == '__main__':
  command.run(main, parser())
