"""The figures of the papers, from the results of a grid."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from resnet.plots import figures
from resnet.tools.reproduce import gains, grids

Cells = Sequence[Mapping[str, Any]]

# Where all nets end below, the figure shows no more, as the paper's do.
_SMALL_ERROR = 20.0


def draw(
  experiment: grids.Experiment, cells: Cells
) -> figures.figure_lib.Figure:
  """Returns the figure of complete cells of results.json."""
  if experiment.shows == 'gains':
    return _draw_gains(experiment, cells)
  by_group = _grouped(cells)
  depths = sorted({cell['depth'] for cell in cells})
  groups = list(experiment.groups)
  # As in He et al. 2016: Figure 6 has a panel a group and a style a depth,
  # Figure 7 compares the groups; of one depth the groups share a panel.
  by_depth = experiment.shows == 'responses' or len(depths) == 1
  panels = {}
  for (group, depth), runs in by_group.items():
    title = f'{depth} layers' if by_depth else group
    style = groups.index(group) if by_depth else depths.index(depth)
    panels.setdefault(title, []).extend(_LINES[experiment.shows](runs, style))
  x_label, y_label, y_range = _AXES[experiment.shows]
  errors = [cell['test_error'] for cell in cells]
  if experiment.shows == 'error' and max(errors) < _SMALL_ERROR:
    y_range = (0.0, _SMALL_ERROR)
  note = _note(cells[0], by_group.values())
  if experiment.shows == 'error':
    note += '; thin: training, bold: test'
  return figures.draw(
    [
      figures.Panel(
        title=group,
        x_label=x_label,
        y_label=y_label,
        lines=lines,
        y_range=y_range,
      )
      for group, lines in panels.items()
    ],
    title=experiment.title,
    note=note,
    share_y=True,
  )


def _draw_gains(
  experiment: grids.Experiment, cells: Cells
) -> figures.figure_lib.Figure:
  """Returns the last test error by group, in the order of the grid."""
  groups = gains.by_group(cells)
  runs = [
    (
      np.arange(len(groups)),
      np.asarray([made[i]['test_error'] for made in groups.values()]),
    )
    for i in range(min(len(made) for made in groups.values()))
  ]
  x, mean, spread = figures.band(runs)
  line = figures.Line(label='', style=0, x=x, y=mean, spread=spread)
  panel = figures.Panel(
    title=cells[0]['label'].split()[0],
    x_label='each with those to its left',
    y_label='test error, %',
    lines=[line],
    x_names=list(groups),
  )
  note = _note(cells[0], groups.values())
  return figures.draw([panel], title=experiment.title, note=note)


def _note(cell: Mapping[str, Any], runs_of_nets: Collection[Cells]) -> str:
  """Says what data, how many seeds, and what the band is."""
  num_seeds = {len(runs) for runs in runs_of_nets}
  seeds = '-'.join(map(str, sorted({min(num_seeds), max(num_seeds)})))
  data = cell['config']['data.name']
  note = f'{data}, {seeds} seed{"" if seeds == "1" else "s"} a net'
  if num_seeds != {1}:
    note += ': mean, band of one standard deviation'
  return note


def _grouped(cells: Cells) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
  result = {}
  for cell in cells:
    result.setdefault((cell['group'], cell['depth']), []).append(cell)
  return result


def _error_lines(runs: Cells, style: int) -> list[figures.Line]:
  return [
    *_mean_line(runs, 'train', 'error', style, bold=False),
    *_mean_line(runs, 'test', 'error', style, bold=True),
  ]


def _loss_lines(runs: Cells, style: int) -> list[figures.Line]:
  return _mean_line(runs, 'train', 'loss', style, bold=True)


def _mean_line(
  runs: Cells, split: str, metric: str, style: int, *, bold: bool
) -> list[figures.Line]:
  curves = [
    (
      np.asarray(run['curves'][split]['step']),
      np.asarray(run['curves'][split][metric], np.float64),
    )
    for run in runs
  ]
  x, mean, spread = figures.band(curves)
  label = runs[0]['label'] if bold else ''
  return [
    figures.Line(
      label=label, style=style, x=x, y=mean, spread=spread, bold=bold
    )
  ]


def _response_lines(runs: Cells, style: int) -> list[figures.Line]:
  values = np.asarray([run['responses'] for run in runs], np.float64)
  return [
    figures.Line(
      label=runs[0]['label'],
      style=style,
      x=np.arange(1, values.shape[1] + 1),
      y=values.mean(axis=0),
      spread=values.std(axis=0, ddof=1) if len(runs) > 1 else None,
    )
  ]


_LINES = {
  'error': _error_lines,
  'loss': _loss_lines,
  'responses': _response_lines,
}
_AXES = {
  'error': ('updates', 'error, %', (0.0, 100.0)),
  'loss': ('updates', 'training loss', None),
  'responses': ('layer', 'standard deviation', None),
}
