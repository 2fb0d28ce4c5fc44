"""results.json and results.md of a grid."""

from collections.abc import Mapping, Sequence
import functools
import json
import math
import os
import re
import statistics
from typing import Any

import jax

from resnet.models import arithmetic
from resnet.reporting.history import History
from resnet.tools import grids
from resnet.training.workdir import write_atomically

RESULTS_FILE, TABLE_FILE = 'results.json', 'results.md'

# What timings may differ between two makings of the same grid.
TIMING = 'timing'


def describe(
  experiment: grids.Experiment, cell: grids.Cell, history: History
) -> dict[str, Any]:
  """Returns a complete cell as results.json has it.

  Errors are in %, of the training images of the last log interval (in train
  mode, as they were learnt from) and of the whole evaluation split.
  """
  train, test = (
    [history.series(f'{split}/{metric}') for metric in ('top1', 'loss')]
    for split in ('train', 'eval')
  )
  return {
    'group': cell.group,
    'depth': cell.depth,
    'seed': cell.seed,
    'label': grids.label(experiment, cell),
    'train_error': _error(history.last('train/top1')),
    'test_error': _error(history.last('eval/top1')),
    'first_loss': _finite(train[1][1][0]),
    'train_loss': _finite(history.last('train/loss')),
    **_size_of(history),
    'hardware': history.hardware,
    'commits': history.commits,
    TIMING: {
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
    'config': dict(history.config),
  }


def write(
  folder: str,
  experiment: grids.Experiment,
  grid: Mapping[str, Any],
  cells: Sequence[grids.Cell],
  done: Mapping[grids.Cell, Mapping[str, Any]],
) -> None:
  """Writes results.json and results.md.

  Args:
    folder: where to.
    experiment: that was made.
    grid: what tells it from other grids.
    cells: that were asked for, now or before.
    done: those that are complete.
  """
  missing = [cell.name for cell in cells if cell not in done]
  results = {
    **grid,
    'cells': {cell.name: done[cell] for cell in cells if cell in done},
    'not_run': missing,
  }
  text = json.dumps(results, indent=1, allow_nan=False) + '\n'
  write_atomically(os.path.join(folder, RESULTS_FILE), _compact(text))
  table = '\n'.join(_table(experiment, grid, cells, done)) + '\n'
  write_atomically(os.path.join(folder, TABLE_FILE), table)


def _table(
  experiment: grids.Experiment,
  grid: Mapping[str, Any],
  cells: Sequence[grids.Cell],
  done: Mapping[grids.Cell, Mapping[str, Any]],
) -> list[str]:
  name, data = grid['experiment'], grid['data']
  rows = [
    f'# {experiment.title}',
    '',
    f'`python -m resnet.tools.reproduce {name} --data={data}`',
    '',
    f'Ours on {data}: mean ± standard deviation over the seeds. Training error:'
    ' of the last log interval, in train mode.',
    '',
    "| net | paper's test error, % | test error, % | training error, %"
    ' | loss at start | runs | parameters | multiply-adds | training, s |',
    '|---|---|---|---|---|---|---|---|---|',
  ]
  for group, depth in dict.fromkeys((c.group, c.depth) for c in cells):
    asked = [c for c in cells if (c.group, c.depth) == (group, depth)]
    made = [done[c] for c in asked if c in done]
    columns = [
      grids.label(experiment, asked[0]),
      _paper(experiment, data, group, depth),
    ]
    if made:
      columns += [
        spread([cell[key] for cell in made], digits)
        for key, digits in (
          ('test_error', 2),
          ('train_error', 2),
          ('first_loss', 3),
        )
      ]
      seconds = [cell[TIMING]['train_seconds'] for cell in made]
      known = [x for x in seconds if x is not None]
      columns += [
        f'{len(made)}',
        f'{made[0]["parameters"]:,}',
        f'{made[0]["multiply_adds"] / 1e6:,.2f} M',
        f'{statistics.median(known):,.0f}' if known else 'not measured',
      ]
    else:
      columns += ['not run'] * 3 + ['0', '', '', '']
    rows.append(f'| {" | ".join(columns)} |')
  for key in ('hardware', 'commits'):
    values = {value for cell in done.values() for value in cell[key]}
    if values:
      rows += ['', f'{key.capitalize()}: {", ".join(sorted(values))}.']
  if experiment.paper:
    rows += ['', 'The paper:', '', '| data | net | error, % | source |']
    rows.append('|---|---|---|---|')
    rows += [
      f'| {where} | {group}-{depth} | {error:g} | {source} |'
      for (where, group, depth), (error, source) in experiment.paper.items()
    ]
  return rows


def _paper(
  experiment: grids.Experiment, data: str, group: str, depth: int
) -> str:
  for where in (data, 'cifar10'):
    if (where, group, depth) in experiment.paper:
      error, source = experiment.paper[where, group, depth]
      more = 'over ' if 'more than' in source else ''
      about = 'about ' if 'read off' in source and not more else ''
      where = '' if where == data else ' (CIFAR-10)'
      return f'{more}{about}{error:g}{where}'
  return 'none'


def spread(values: Sequence[float | None], digits: int) -> str:
  """Returns 'mean ± standard deviation', of one value just this."""
  known = [value for value in values if value is not None]
  if len(known) < len(values):
    return 'not finite'
  text = f'{statistics.mean(known):.{digits}f}'
  if len(known) > 1:
    text += f' ± {statistics.stdev(known):.{digits}f}'
  return text


def _size_of(history: History) -> dict[str, int]:
  config = history.config
  overrides = {
    'num_classes': config['model.num_classes'] or history.derived['num_classes']
  }
  if config['model.shortcut'] is not None:
    overrides['shortcut'] = config['model.shortcut']
  return _size(
    config['model.name'], config['data.image_size'], tuple(overrides.items())
  )


@functools.cache
def _size(
  name: str, image_size: int, overrides: tuple[tuple[str, Any], ...]
) -> dict[str, int]:
  network = arithmetic.trace(name, image_size, **dict(overrides))
  return {
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(network.params)),
    'multiply_adds': sum(
      cost.conv_multiply_adds for cost in network.costs.values()
    ),
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
