"""Plots the curves of runs: loss, error, learning rate, speed, data wait."""

from collections.abc import Sequence
import os

from resnet.checkpoint_folder import score
from resnet.plots import figures
from resnet.run.history import History, read_history
from resnet.run.workdir import CURVES_FILE

# Title, y label and metrics of each panel: training, validation, averages.
_PANELS = (
  ('Loss', 'loss', ('train/loss', 'eval/loss', 'eval_ema/loss')),
  ('Error', 'top-1 error, %', ('train/top1', 'eval/top1', 'eval_ema/top1')),
  ('Learning rate', 'learning rate', ('learning_rate',)),
  ('Speed', 'images/s', ('images_per_second',)),
  ('Data wait', 'share of time', ('data_wait',)),
)

_PARTS = ('training', 'validation', 'validation, averaged weights')


def save_curves(workdir: str) -> None:
  """Draws the curves of the run in `workdir` and saves them as `curves.png`."""
  history = read_history(workdir)
  config = history.config
  name = f'{config["model.name"]} on {config["data.name"]}'
  figure = draw_curves([history], [name])
  figures.save(figure, os.path.join(workdir, CURVES_FILE))


def draw_curves(
  histories: Sequence[History], names: Sequence[str]
) -> figures.Figure:
  """Returns a figure with the curves of all runs over the epochs.

  Each run has its style; if there is only one, its training, validation and
  averaged weights have. Stars mark the best evaluations. A metric that no run
  has gets no panel.
  """
  is_one = len(histories) == 1
  known = {name for run in histories for line in run.lines for name in line}
  panels = [panel for panel in _PANELS if known.intersection(panel[2])]
  figure, axes = figures.create(
    [title for title, _, _ in panels],
    title=', '.join(names) if len(names) < 4 else f'{len(names)} runs',
    columns=3,
  )
  for ax, (title, y_label, metrics) in zip(axes, panels, strict=True):
    ax.set(xlabel='epochs', ylabel=y_label)
    if title == 'Data wait':
      ax.set_ylim(0, 1)  # It is a share.
    for i, (history, name) in enumerate(zip(histories, names, strict=True)):
      best = history.best_evaluation
      text = f'best: top-1 {score(best):.2%}' if best else 'not evaluated'
      # One legend serves all axes, so each style has one label.
      labels = {'eval_ema/loss': f'{name}, averaged weights'}
      if is_one:
        labels = dict(zip(_PANELS[0][2], _PARTS, strict=True))
      elif title == 'Loss':  # An empty curve, for the legend.
        figures.draw_curve(ax, [], [], style=i, label=f'{name} ({text})')
      for part, metric in enumerate(metrics):
        x, y = history.series(metric)
        if len(x):
          figures.draw_curve(
            ax,
            history.epochs(x),
            100 * (1 - y) if metric.endswith('/top1') else y,
            style=part if is_one else i + len(names) * (part == 2),
            label=labels.get(metric, ''),
            bold=part > 0 or len(metrics) == 1,
          )
      if best and len(metrics) > 1:
        y = next(best[x] for x in reversed(metrics) if x in best)
        y = 100 * (1 - y) if title == 'Error' else y
        x = history.epochs(best['step'])
        label = f'{text} at epoch {x:.3g}' if is_one and title == 'Loss' else ''
        figures.draw_star(ax, x, y, label=label)
  figure.legend(
    loc='outside lower center',
    ncols=4 if is_one else 3,
    fontsize=9,
    title='' if is_one else 'thin: training; bold: validation; star: best',
    title_fontsize=9,
  )
  return figure
