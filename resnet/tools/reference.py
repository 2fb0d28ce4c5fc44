"""Makes the band of a reference from finished runs of several seeds.

  python -m resnet.tools.reference runs/digits_seed* --output=band.json

Training warns when a run leaves it: python main.py --reference=band.json
"""

import argparse
from collections.abc import Sequence
import json
import os
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.fields import FREE_FIELDS
from resnet.files import write_atomically, writing
from resnet.run.history import History, read_history
from resnet.tools import command

# The loss deviates early; the accuracy is the result.
_METRICS = ('train/loss', 'eval/top1')
_MIN_SEEDS = 3


def main(args: argparse.Namespace) -> None:
  """Checks the runs and writes their band."""
  histories = [read_history(workdir) for workdir in args.workdirs]
  # Folders and the speed of reading change no result.
  ignored = {'seed', *FREE_FIELDS}
  config = {k: v for k, v in histories[0].config.items() if k not in ignored}
  for history in histories:
    if not history.is_complete:
      raise InputError(f'{history.workdir} is not complete: train it first.')
    for field, value in config.items():
      if history.config.get(field) != value:
        raise InputError(
          f'The runs differ in {field}: {value!r} and'
          f' {history.config.get(field)!r}; only their seeds may differ.'
        )
  seeds = {history.config['seed'] for history in histories}
  if not _MIN_SEEDS <= len(seeds) == len(histories):
    raise InputError(
      f'A band needs at least {_MIN_SEEDS} runs with different seeds; these are'
      f' {len(histories)} runs with {len(seeds)} seeds.'
    )
  bands = {metric: _band(histories, metric) for metric in _METRICS}
  fields = {'num_seeds': len(seeds), 'config': config, 'bands': bands}
  with writing(f'--output={args.output}'):
    os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
    write_atomically(args.output, json.dumps(fields, indent=1) + '\n')
  points = ', '.join(f'{len(b["step"])} of {m}' for m, b in bands.items())
  print(f'{args.output}: {len(seeds)} seeds, {points}')


def _band(histories: Sequence[History], metric: str) -> dict[str, Any]:
  """Returns mean and deviation of a metric at the steps that all runs have."""
  curves = [dict(zip(*h.series(metric), strict=True)) for h in histories]
  steps = sorted(set.intersection(*map(set, curves)))
  values = np.array([[curve[step] for step in steps] for curve in curves])
  if not np.isfinite(values).all():
    raise InputError(f'{metric} of a run is not finite: leave that run out.')
  # An accuracy is known to one image.
  num_images = histories[0].derived['num_eval_examples']
  least = 1 / num_images if metric == 'eval/top1' else 1e-9
  return {
    'step': list(map(int, steps)),
    'mean': values.mean(axis=0).tolist(),
    'std': np.maximum(values.std(axis=0, ddof=1), least).tolist(),
  }


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.reference',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  result.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  result.add_argument('--output', required=True, metavar='FILE')
  return result


if __name__ == '__main__':
  command.run(main, parser())
