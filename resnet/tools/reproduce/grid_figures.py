"""Draws the figures of the papers from the results of a grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet.plots import figures
from resnet.tools.reproduce.grids import Grid, Result, by_net
from resnet.tools.reproduce.studies import LEADERBOARD

Nets = dict[tuple[str, int], list[Result]]

# Upper limit of the error axis in %, if all final test errors are below it, as
# in the papers.
_SMALL_ERROR = 20.0
# One for each depth.
_MARKERS = 'osD^v'
_LABELS = {
  'error': ('updates', 'error, %'),
  'loss': ('updates', 'training loss'),
  'responses': ('layer', 'standard deviation'),
  'gains': ('ingredients, each added to those on its left', 'test error, %'),
}


def draw(grid: Grid, results: Sequence[Result]) -> figures.Figure:
  """Returns the figure of the results of a grid."""
  nets, shows = by_net(results), grid.study.shows
  if shows == 'accuracy':
    return _draw_leaderboard(grid, nets)
  groups = list(grid.study.groups)
  depths = sorted({depth for _, depth in nets})
  # In He et al. 2016, Figure 6 has a panel for each group and a style for each
  # depth; Figure 7 compares the groups. If there is only one depth, all groups
  # share a panel.
  by_depth = shows in ('responses', 'gains') or len(depths) == 1
  panels: dict[str, Nets] = {}
  for (group, depth), runs in nets.items():
    title = f'{depth} layers' if by_depth else group
    panels.setdefault(title, {})[group, depth] = runs
  notes = []
  if max(map(len, nets.values())) > 1:
    notes = ['mean over the seeds', 'the band is ± one standard deviation']
  if shows == 'error':
    notes += ['training is thin', 'test is bold']
  figure, axes = figures.create(
    list(panels),
    title=f'{grid.study.title}\n{grid.setting}',
    note='; '.join(notes).capitalize(),
    share_y=True,
  )
  x_label, y_label = _LABELS[shows]
  axes[0].set_ylabel(y_label)
  for ax, members in zip(axes, panels.values(), strict=True):
    ax.set_xlabel(x_label)
    if shows == 'gains':
      errors = [[run['test_error'] for run in x] for x in members.values()]
      by_seed = list(zip(*errors, strict=False))
      _draw_mean(ax, range(len(errors)), by_seed, style=0)
      ax.set_xticks(range(len(errors)), [x for x, _ in members], rotation=30)
      continue
    for (group, depth), runs in members.items():
      style = groups.index(group) if by_depth else depths.index(depth)
      _draw_net(ax, shows, runs, style)
    ax.locator_params(axis='x', integer=True)
    ax.legend()
  if shows == 'error':
    # The errors of runs to come are not known.
    is_small = len(results) >= len(grid.cells) and all(
      result['test_error'] < _SMALL_ERROR for result in results
    )
    # A short recipe has half of its curve above the range of the paper.
    limit = _SMALL_ERROR if grid.epochs is None else 3 * _SMALL_ERROR
    axes[0].set_ylim(0, limit if is_small else 100)
  return figure


def _draw_leaderboard(grid: Grid, nets: Nets) -> figures.Figure:
  """Returns a figure with a panel for each size of the images."""
  sizes = list(dict.fromkeys(group.partition('x')[0] for group, _ in nets))
  depths = sorted({depth for _, depth in nets})
  spread = ''
  if max(map(len, nets.values())) > 1:
    spread = 'Points: mean over the seeds ± one standard deviation\n'
  figure, axes = figures.create(
    [f'{size} pixels' for size in sizes],
    title=f'{grid.study.title}\n{grid.setting}',
    note=f'{spread}fast.ai: variants of XResNet-50, not the same networks',
    share_y=True,
  )
  axes[0].set_ylabel('top-1 accuracy, %')
  for ax, size in zip(axes, sizes, strict=True):
    groups = {
      int(group.partition('x')[2]): group
      for group in LEADERBOARD
      if group.startswith(f'{size}x')
    }
    published = [LEADERBOARD[group] for group in groups.values()]
    figures.draw_curve(ax, list(groups), published, style=0, label='fast.ai')
    for i, depth in enumerate(depths):
      made = {
        x: nets[group, depth]
        for x, group in groups.items()
        if (group, depth) in nets
      }
      if not made:
        continue
      # Points of several depths stand side by side.
      shift = 1.06 ** (i - (len(depths) - 1) / 2)
      values = [[run['test_accuracy'] for run in x] for x in made.values()]
      ax.errorbar(
        [x * shift for x in made],
        [np.mean(x) for x in values],
        [np.std(x, ddof=1) if len(x) > 1 else np.nan for x in values],
        color=figures.COLORS[(i + 1) % len(figures.COLORS)],
        marker=_MARKERS[i % len(_MARKERS)],
        linestyle='none',
        capsize=4,
        label=f'ours, resnet{depth}d',
      )
    ax.set_xlabel('epochs')
    ax.set_xscale('log')
    ax.set_xlim(4, 100)
    ax.set_xticks([5, 20, 80], ['5', '20', '80'])
    ax.minorticks_off()
    ax.legend(loc='lower right')
  return figure


def _draw_net(ax: Any, shows: str, runs: Sequence[Result], style: int) -> None:
  label = runs[0]['label']
  if shows == 'responses':
    responses = [run['responses'] for run in runs]
    layers = range(1, len(responses[0]) + 1)
    _draw_mean(ax, layers, responses, style=style, label=label)
    return
  for split in ('train', 'test') if shows == 'error' else ('train',):
    curves = [run['curves'][split] for run in runs]
    is_bold = split == 'test' or shows == 'loss'
    look = {'style': style, 'label': label if is_bold else '', 'bold': is_bold}
    _draw_mean(ax, curves[0]['step'], [x[shows] for x in curves], **look)


def _draw_mean(ax: Any, x: Any, curves: Any, **look: Any) -> None:
  """Draws the mean and the standard deviation of curves [num_seeds, N]."""
  spread = np.std(curves, axis=0, ddof=1) if len(curves) > 1 else None
  figures.draw_curve(ax, x, np.mean(curves, axis=0), spread=spread, **look)
