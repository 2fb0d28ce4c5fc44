"""Plots the curves of runs: loss, error, learning rate, speed, data wait."""

from collections.abc import Sequence
import os

from resnet.plots import figures
from resnet.run.history import History, read_history
from resnet.run.workdir import CURVES_FILE

# Title, y label and metrics of each panel.
_PANELS = (
  ('Loss', 'loss', ('train/loss', 'eval/loss', 'eval_ema/loss')),
  ('Error', 'top-1 error, %', ('train/top1', 'eval/top1', 'eval_ema/top1')),
  ('Learning rate', 'learning rate', ('learning_rate',)),
  ('Speed', 'images/s', ('images_per_second',)),
  ('Data wait', 'share of time', ('data_wait',)),
)


def save_curves(workdir: str) -> None:
  """Draws the curves of the run in `workdir` and saves them as `curves.png`."""
  history = read_history(workdir)
  figure = draw_curves([history], [history.config['model.name']])
  figures.save(figure, os.path.join(workdir, CURVES_FILE))


def draw_curves(
  histories: Sequence[History], names: Sequence[str]
) -> figures.Figure:
  """Returns a figure with the curves of all runs, labelled by `names`."""
  figure, axes = figures.create(
    [title for title, _, _ in _PANELS],
    title=', '.join(names) if len(names) < 4 else f'{len(names)} runs',
    note='loss and error: training is thin, test is bold',
    columns=3,
  )
  for ax, (_, y_label, metrics) in zip(axes, _PANELS, strict=True):
    ax.set(xlabel='updates', ylabel=y_label)
    for i, (history, name) in enumerate(zip(histories, names, strict=True)):
      # One legend serves all axes, so each style has one label.
      labels = {
        'learning_rate': name,
        'eval_ema/loss': f'{name}, moving averages',
      }
      for metric in metrics:
        x, y = history.series(metric)
        if len(x):
          figures.draw_curve(
            ax,
            x,
            100 * (1 - y) if metric.endswith('/top1') else y,
            style=i + len(names) * metric.startswith('eval_ema/'),
            label=labels.get(metric, ''),
            bold=not metric.startswith('train/'),
          )
  axes[-1].set_ylim(0, 1)  # The data wait is a share.
  figure.legend(loc='lower right', fontsize=9)
  return figure
