"""Compares runs: their curves, last metrics and the fields that differ.

  python -m resnet.tools.report runs/digits runs/other --output=report.png

Prints tables and writes the curves.
"""

import argparse
from collections.abc import Sequence
import os
import sys

from resnet.errors import InputError
from resnet.files import writing
from resnet.plots import figures
from resnet.plots.curves import draw_curves
from resnet.run.history import History, read_history
from resnet.tools import command

Rows = list[list[str]]

# Title, metric, format.
_COLUMNS = (
  ('train loss', 'train/loss', '.4f'),
  ('train top-1', 'train/top1', '.4f'),
  ('eval loss', 'eval/loss', '.4f'),
  ('eval top-1', 'eval/top1', '.4f'),
  ('ema top-1', 'eval_ema/top1', '.4f'),
  ('eval top-5', 'eval/top5', '.4f'),
  ('images/s', 'images_per_second', ',.0f'),
  ('data wait', 'data_wait', '.1%'),
)


def main(args: argparse.Namespace) -> None:
  """Reads the runs, draws their curves and prints their tables."""
  if not args.output.endswith('.png'):
    raise InputError(f'--output={args.output} must end in .png.')
  histories = []
  for workdir in args.workdirs:
    try:
      history = read_history(workdir)
      if not history.lines:
        raise InputError(f'{workdir} has no metrics yet.')
      histories.append(history)
    except InputError as error:
      print(f'left out: {error}', file=sys.stderr)
  if not histories:
    raise InputError('None of these folders has metrics of a run.')
  names = _names([history.workdir for history in histories])
  with writing(f'--output={args.output}'):
    os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
    figures.save(draw_curves(histories, names), args.output)
  print(command.table(_last_metrics(histories, names)))
  differences = _differences(histories, names)
  if len(differences) > 1:
    print(f'\n{command.table(differences)}')
  print(f'\n{args.output}')


def _names(workdirs: Sequence[str]) -> list[str]:
  """Returns the paths relative to their common parent."""
  paths = [os.path.abspath(workdir) for workdir in workdirs]
  above = os.path.commonpath([os.path.dirname(path) for path in paths])
  return [os.path.relpath(path, above) for path in paths]


def _last_metrics(histories: Sequence[History], names: Sequence[str]) -> Rows:
  rows = [['run', 'step', *(title for title, _, _ in _COLUMNS)]]
  for history, name in zip(histories, names, strict=True):
    step = history.lines[-1]['step']
    row = [name, f'{step:,} of {history.num_steps:,}']
    for _, metric, form in _COLUMNS:
      value = history.last(metric)
      row.append('none' if value is None else format(value, form))
    rows.append(row)
  return rows


def _differences(histories: Sequence[History], names: Sequence[str]) -> Rows:
  """Returns rows of the fields, hardware and commits that differ."""
  runs = [
    {field: repr(value) for field, value in history.config.items()}
    | {
      fact: ', '.join(history.distinct(fact)) or 'unknown'
      for fact in ('hardware', 'commit')
    }
    for history in histories
  ]
  rows = [['field', *names]]
  for field in dict.fromkeys(field for run in runs for field in run):
    values = [run.get(field, 'none') for run in runs]
    if len(set(values)) > 1:
      rows.append([field, *values])
  return rows


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('report', __doc__)
  add = result.add_argument
  add('workdirs', nargs='+', metavar='WORKDIR', help='folders of runs')
  text = 'file of the curves; default: report.png'
  add('--output', default='report.png', metavar='PNG', help=text)
  return result


if __name__ == '__main__':
  command.run(main, parser())
