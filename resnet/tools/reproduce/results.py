"""Writes the results of a grid: results.json, results.md, the figure."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import statistics
from typing import Any

import numpy as np

from resnet.experiment import Experiment
from resnet.fields import FREE_FIELDS
from resnet.files import to_json, write_atomically
from resnet.plots import figures
from resnet.run.history import History
from resnet.tools.command import table
from resnet.tools.reproduce import grid_figures
from resnet.tools.reproduce.grids import Cell, Grid, Result, by_net, label
from resnet.tools.reproduce.studies import PAPER, PAPER_SOURCE

RESULTS_FILE = 'results.json'
# Title, name in results.json, format.
_COLUMNS = (
  ('test error, %', 'test_error', '.2f'),
  ('training error, %', 'train_error', '.2f'),
  ('first loss', 'first_loss', '.3f'),
  ('images/s', 'images_per_second', ',.0f'),
)
_NOTE = (
  'Ours: mean ± standard deviation over the seeds. The training error is from'
  ' the last log interval and the first loss from the first interval, both in'
  ' train mode. Images/s are the median over the log intervals.'
)


def describe(
  grid: Grid, cell: Cell, run: Experiment, history: History
) -> dict[str, Any]:
  """Returns the result of a complete run, with errors in %.

  The test error is that of the moving averages if the run keeps them.
  """
  test = 'eval' if run.task.ema_decay is None else 'eval_ema'
  curves = {}
  for split, prefix in (('train', 'train'), ('test', test)):
    step, top1 = history.series(f'{prefix}/top1')
    _, loss = history.series(f'{prefix}/loss')
    curves[split] = {
      'step': step.tolist(),
      'error': (100 * (1 - top1)).tolist(),
      'loss': loss.tolist(),
    }
  _, rates = history.series('images_per_second')
  return {
    **dataclasses.asdict(cell),
    'label': label(grid.study, cell.group, cell.depth),
    'train_error': curves['train']['error'][-1],
    'test_error': curves['test']['error'][-1],
    'first_loss': curves['train']['loss'][0],
    'hardware': history.distinct('hardware'),
    'commits': history.distinct('commit'),
    'images_per_second': float(np.median(rates)) if len(rates) else math.nan,
    'curves': curves,
    # FREE_FIELDS, such as the number of workers, do not change the result.
    'config': {k: v for k, v in history.config.items() if k not in FREE_FIELDS},
  }


def write(grid: Grid, done: Mapping[Cell, Result]) -> str:
  """Writes results.json, results.md and the figure of the complete cells.

  Returns the text of results.md.
  """
  complete = {cell.name: done[cell] for cell in grid.cells if cell in done}
  fields = {
    'experiment': grid.name,
    'data': grid.data,
    'cells': complete,
    'not_run': [dataclasses.asdict(x) for x in grid.cells if x not in done],
  }
  parts = [
    f'# {grid.study.title}',
    f'`python -m resnet.tools.reproduce {grid.name} --data={grid.data}'
    ' --workdir=DIR`',
    _NOTE,
    table(_rows(grid, done), markdown=True),
    PAPER_SOURCE,
  ]
  for key in ('hardware', 'commits'):
    values = {value for result in done.values() for value in result[key]}
    if values:
      parts.append(f'{key.capitalize()}: {", ".join(sorted(values))}.')
  if grid.study.shows == 'gains' and done:
    parts += [
      'A row is better or worse only if its range of mean ± standard'
      ' deviation does not touch that of the row before.',
      table(gain_rows(list(complete.values())), markdown=True),
    ]
  path, text = os.path.join(grid.workdir, ''), '\n\n'.join(parts) + '\n'
  write_atomically(path + RESULTS_FILE, to_json(fields, indent=1) + '\n')
  write_atomically(f'{path}results.md', text)
  if complete:
    figure = grid_figures.draw(grid.study, list(complete.values()))
    for kind in ('png', 'svg'):
      figures.save(figure, f'{path}figure.{kind}')
  return text


def _rows(grid: Grid, done: Mapping[Cell, Result]) -> list[list[str]]:
  """Returns the titles and a row for each network."""
  columns = list(_COLUMNS)
  if grid.study.shows == 'responses':
    columns.insert(3, ('mean response', 'mean_response', '.3f'))
  titles = [title for title, _, _ in columns]
  rows = [['net', "paper's test error, %", *titles, 'runs']]
  for group, depth in dict.fromkeys((c.group, c.depth) for c in grid.cells):
    asked = [c for c in grid.cells if (c.group, c.depth) == (group, depth)]
    made = [done[cell] for cell in asked if cell in done]
    net = label(grid.study, group, depth)
    paper = PAPER.get(grid.data, PAPER['cifar10']).get(net, 'none')
    if paper != 'none' and grid.data not in PAPER:
      paper += ' (CIFAR-10)'
    values = [
      _spread([run[key] for run in made], form) for _, key, form in columns
    ]
    rows.append([net, paper, *values, f'{len(made)} of {len(asked)}'])
  return rows


def _spread(values: Sequence[float], form: str) -> str:
  """Returns 'mean ± standard deviation', a single value, or 'not run'."""
  if not values:
    return 'not run'
  text = format(statistics.mean(values), form)
  if len(values) > 1:
    text += f' ± {format(statistics.stdev(values), form)}'
  return text


def gain_rows(results: Sequence[Result]) -> list[list[str]]:
  """Returns the titles and a row for each network, ordered by depth."""
  titles = ['added', 'fall of the test error, points', 'against the row before']
  rows, before = [titles], {}
  nets = sorted(by_net(results).items(), key=lambda net: net[0][1])
  for (_, depth), runs in nets:
    errors = [run['test_error'] for run in runs]
    row = [runs[0]['label'], '', '']
    if depth in before:
      fall = statistics.mean(before[depth]) - statistics.mean(errors)
      row[1:] = [f'{fall:+.2f}', verdict(before[depth], errors)]
    rows.append(row)
    before[depth] = errors
  return rows


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
  """Compares test errors in %, one for each seed.

  Returns 'better' or 'worse' only if the ranges of mean ± standard deviation do
  not touch.
  """
  if min(len(before), len(after)) < 2:
    return 'one seed: no claim'
  gap = statistics.mean(before) - statistics.mean(after)
  if abs(gap) <= statistics.stdev(before) + statistics.stdev(after):
    return 'within the spread'
  return 'better' if gap > 0 else 'worse'
