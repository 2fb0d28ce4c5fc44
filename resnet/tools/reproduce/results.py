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
from resnet.tools.reproduce import grid_figures, grids, studies
from resnet.tools.reproduce.grids import Cell, Grid, Result

RESULTS_FILE = 'results.json'
_NOTE = (
  'Ours: mean ± standard deviation over the seeds. {}Images/s are the median'
  ' over the log intervals.'
)
_ERROR_NOTE = (
  'The training error is from the last log interval and the first loss from the'
  ' first interval, both in train mode. '
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
    'label': grids.label(grid.study, cell.group, cell.depth),
    'train_error': curves['train']['error'][-1],
    'test_error': curves['test']['error'][-1],
    'test_accuracy': 100 - curves['test']['error'][-1],
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
    **grid.identity,
    'cells': complete,
    'not_run': [dataclasses.asdict(x) for x in grid.cells if x not in done],
  }
  is_leaderboard = grid.study.shows == 'accuracy'
  parts = [
    f'# {grid.study.title}: {grid.setting}',
    f'`python -m resnet.tools.reproduce {grid.arguments} --workdir=WORKDIR`',
    _NOTE.format('' if is_leaderboard else _ERROR_NOTE),
    table(_rows(grid, done), markdown=True),
    studies.LEADERBOARD_SOURCE if is_leaderboard else studies.PAPER_SOURCE,
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
    figure = grid_figures.draw(grid, list(complete.values()))
    for kind in ('png', 'svg'):
      figures.save(figure, f'{path}figure.{kind}')
  return text


def _rows(grid: Grid, done: Mapping[Cell, Result]) -> list[list[str]]:
  """Returns the titles and a row for each network."""
  published, columns = _columns(grid)
  titles = [title for title, _, _ in columns]
  rows = [['net', published, *titles, 'runs']]
  for group, depth in dict.fromkeys((c.group, c.depth) for c in grid.cells):
    asked = [c for c in grid.cells if (c.group, c.depth) == (group, depth)]
    made = [done[cell] for cell in asked if cell in done]
    net = grids.label(grid.study, group, depth)
    values = [
      _spread([run[key] for run in made], form) for _, key, form in columns
    ]
    runs = f'{len(made)} of {len(asked)}'
    rows.append([net, _published(grid, group, net), *values, runs])
  return rows


def _columns(grid: Grid) -> tuple[str, list[tuple[str, str, str]]]:
  """Returns the title of the published column, and the columns of ours.

  A column of ours is its title, its name in results.json and its format.
  """
  speed = ('images/s', 'images_per_second', ',.0f')
  where = f' on {grid.data_title}, %'
  if grid.study.shows == 'accuracy':
    ours = (f'top-1 accuracy{where}', 'test_accuracy', '.2f')
    return "fast.ai's top-1 accuracy, %", [ours, speed]
  columns = [
    (f'test error{where}', 'test_error', '.2f'),
    ('training error, %', 'train_error', '.2f'),
    ('first loss', 'first_loss', '.3f'),
  ]
  if grid.study.shows == 'responses':
    columns.append(('mean response', 'mean_response', '.3f'))
  return "paper's test error, %", [*columns, speed]


def _published(grid: Grid, group: str, net: str) -> str:
  if grid.study.shows == 'accuracy':
    return f'{studies.LEADERBOARD[group]:.2f}'
  paper = studies.PAPER
  value = paper.get(grid.data, paper['cifar10']).get(net, 'none')
  is_other = value != 'none' and grid.data not in paper
  return f'{value} (CIFAR-10)' if is_other else value


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
  nets = sorted(grids.by_net(results).items(), key=lambda net: net[0][1])
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
