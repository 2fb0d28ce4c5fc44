"""results.json and results.md of a grid."""

from collections.abc import Mapping, Sequence
import functools
import json
import math
import os
import re
import statistics
from typing import Any

from resnet.experiment import Experiment
from resnet.fields import FREE_FIELDS
from resnet.files import write_atomically
from resnet.models import cost
from resnet.run.history import History
from resnet.tools.reproduce import gains, grids
from resnet.tools.reproduce.costs import Costs

RESULTS_FILE, TABLE_FILE = 'results.json', 'results.md'

# What timings may differ between two makings of the same grid.
TIMING = 'timing'


def describe(
  experiment: grids.Experiment,
  cell: grids.Cell,
  run: Experiment,
  history: History,
) -> dict[str, Any]:
  """Returns a complete cell as results.json has it.

  Errors are in %, of the training images of the last log interval (in train
  mode, as they were learnt from) and of the whole evaluation split. A run that
  keeps moving averages is tested with these.
  """
  tested = 'eval' if run.task.ema_decay is None else 'eval_ema'
  train, test = (
    [history.series(f'{split}/{metric}') for metric in ('top1', 'loss')]
    for split in ('train', tested)
  )
  return {
    'group': cell.group,
    'depth': cell.depth,
    'seed': cell.seed,
    'label': grids.label(experiment, cell),
    'train_error': _error(history.last('train/top1')),
    'test_error': _error(history.last(f'{tested}/top1')),
    # Of the first log interval.
    'first_loss': _finite(train[1][1][0]),
    'train_loss': _finite(history.last('train/loss')),
    **_size_of(run),
    'hardware': history.hardware,
    'commits': history.commits,
    TIMING: {
      'wall_seconds': history.wall_seconds,
      'train_seconds': history.train_seconds,
      'images_per_second': _images_per_second(history),
    },
    'curves': {
      split: {
        'step': top1[0].tolist(),
        'error': [_error(value) for value in top1[1]],
        'loss': [_finite(value) for value in loss[1]],
      }
      for split, (top1, loss) in (('train', train), ('test', test))
    },
    # Where and how fast the data were read is no matter of the result.
    'config': {k: v for k, v in history.config.items() if k not in FREE_FIELDS},
  }


def write(
  folder: str,
  experiment: grids.Experiment,
  grid: Mapping[str, Any],
  cells: Sequence[grids.Cell],
  done: Mapping[grids.Cell, Mapping[str, Any]],
  costs: Costs | None = None,
) -> None:
  """Writes results.json and results.md.

  Args:
    folder: where to.
    experiment: that was made.
    grid: what tells it from other grids.
    cells: that were asked for, now or before.
    done: those that are complete.
    costs: of steps by group, where they were measured.
  """
  missing = [cell.name for cell in cells if cell not in done]
  results = {
    **grid,
    'cells': {cell.name: done[cell] for cell in cells if cell in done},
    'not_run': missing,
    **({'costs': costs} if costs else {}),
  }
  text = json.dumps(results, indent=1, allow_nan=False) + '\n'
  write_atomically(os.path.join(folder, RESULTS_FILE), _compact(text))
  rows = _table(experiment, grid, cells, done)
  if experiment.shows == 'gains' and done:
    rows += _gains([done[cell] for cell in cells if cell in done], costs)
  table = '\n'.join(rows) + '\n'
  write_atomically(os.path.join(folder, TABLE_FILE), table)


_COLUMNS = (
  ('test error, %', 'test_error', '.2f'),
  ('training error, %', 'train_error', '.2f'),
  ('first loss', 'first_loss', '.3f'),
  ('mean response', 'mean_response', '.3f'),
  ('wall time, s', 'wall_seconds', ',.0f'),
  ('images/s', 'images_per_second', ',.0f'),
)


def _table(
  experiment: grids.Experiment,
  grid: Mapping[str, Any],
  cells: Sequence[grids.Cell],
  done: Mapping[grids.Cell, Mapping[str, Any]],
) -> list[str]:
  columns = [
    column
    for column in _COLUMNS
    if column[1] != 'mean_response' or experiment.shows == 'responses'
  ]
  titles = [
    'net',
    "paper's test error, %",
    *(title for title, _, _ in columns),
    'runs',
    'parameters',
    'multiply-adds',
  ]
  rows = [
    f'# {experiment.title}',
    '',
    f'`{command_of(experiment, grid, cells)}`',
    '',
    f'Ours on {grid["data"]}: mean ± standard deviation over the seeds. The'
    ' training error is that of the last log interval and the first loss that'
    ' of the first, in train mode. Images/s are those of training steps; the'
    ' wall time has compilation, evaluation and saving too.',
    '',
    _row(titles),
    _row(['---'] * len(titles)),
  ]
  for group, depth in dict.fromkeys((c.group, c.depth) for c in cells):
    asked = [c for c in cells if (c.group, c.depth) == (group, depth)]
    made = [{**done[c], **done[c][TIMING]} for c in asked if c in done]
    row = [
      grids.label(experiment, asked[0]),
      _paper(experiment, grid['data'], group, depth),
    ]
    if made:
      row += [spread([cell[key] for cell in made], f) for _, key, f in columns]
      row += [
        f'{len(made)} of {len(asked)}',
        f'{made[0]["parameters"]:,}',
        f'{made[0]["multiply_adds"] / 1e6:,.2f} M',
      ]
    else:
      row += ['not run'] * len(columns) + [f'0 of {len(asked)}', '', '']
    rows.append(_row(row))
  for key in ('hardware', 'commits'):
    values = {value for cell in done.values() for value in cell[key]}
    if values:
      rows += ['', f'{key.capitalize()}: {", ".join(sorted(values))}.']
  if experiment.says:
    rows += ['', f'The paper: {experiment.says}']
  if experiment.paper:
    rows += ['', 'Numbers of the papers:', '']
    rows += [_row(['data', 'net', 'error, %', 'source']), _row(['---'] * 4)]
    rows += [
      _row([data, f'{group} {depth}', f'{error:g}', source])
      for (data, group, depth), (error, source) in experiment.paper.items()
    ]
  return rows


def _gains(
  cells: Sequence[Mapping[str, Any]], costs: Costs | None
) -> list[str]:
  note = 'Better or worse: mean ± standard deviation of both do not touch.'
  titles, *rows = gains.rows(cells, costs)
  head = ['', note, '', _row(titles), _row(['---'] * len(titles))]
  return [*head, *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
  return f'| {" | ".join(cells)} |'


def command_of(
  experiment: grids.Experiment,
  grid: Mapping[str, Any],
  cells: Sequence[grids.Cell],
) -> str:
  """Returns the command that makes these cells."""
  data = grid['data']
  text = f'python -m resnet.tools.reproduce {grid["experiment"]} --data={data}'
  for flag, values, default in (
    ('groups', [c.group for c in cells], experiment.groups),
    ('depths', [c.depth for c in cells], experiment.depths[data]),
    ('seeds', [c.seed for c in cells], range(experiment.num_seeds)),
  ):
    if set(values) != set(default):
      chosen = ','.join(map(str, dict.fromkeys(values)))
      text += f' --{flag}={chosen}'
  return f'{text} --workdir=DIR'


def _paper(
  experiment: grids.Experiment, data: str, group: str, depth: int
) -> str:
  for where in (data, 'cifar10'):
    if (where, group, depth) in experiment.paper:
      error, source = experiment.paper[where, group, depth]
      more = 'over ' if 'more than' in source else ''
      about = 'about ' if 'read off' in source and not more else ''
      notes = ['CIFAR-10'] if where != data else []
      notes += ['ten crops'] if 'ten crops' in source else []
      note = f' ({", ".join(notes)})' if notes else ''
      return f'{more}{about}{error:g}{note}'
  return 'none'


def spread(values: Sequence[float | None], form: str) -> str:
  """Returns 'mean ± standard deviation', of one value just this."""
  known = [value for value in values if value is not None]
  if len(known) < len(values):
    return 'not known'
  text = format(statistics.mean(known), form)
  if len(known) > 1:
    text += f' ± {format(statistics.stdev(known), form)}'
  return text


def _size_of(run: Experiment) -> dict[str, int]:
  height, _, channels = run.image_shape
  model = run.config['model.name'], run.config['model.shortcut']
  num_classes = run.config['model.num_classes'] or run.train_reader.num_classes
  return _size(*model, num_classes, height, channels)


@functools.cache
def _size(
  name: str,
  shortcut: str | None,
  num_classes: int,
  image_size: int,
  channels: int,
) -> dict[str, int]:
  overrides: dict[str, Any] = {'shortcut': shortcut} if shortcut else {}
  network = cost.trace(
    name, image_size, channels=channels, num_classes=num_classes, **overrides
  )
  return {
    'parameters': network.num_params(),
    'multiply_adds': network.total.conv_multiply_adds,
  }


def _images_per_second(history: History) -> float | None:
  seconds = history.train_seconds
  if seconds is None:
    return None
  return history.num_steps * history.config['batch_size'] / seconds


def _error(top1: float | None) -> float | None:
  """Accuracy as a fraction -> error in %, rounded below any meaning."""
  return _finite(None if top1 is None else round(100 * (1 - top1), 6))


def _finite(value: float | None) -> float | None:
  return value if value is not None and math.isfinite(value) else None


def _compact(text: str) -> str:
  """Puts lists of numbers on one line each."""
  return re.sub(
    r'\[[^][{}"]*\]', lambda match: ' '.join(match[0].split()), text
  )
