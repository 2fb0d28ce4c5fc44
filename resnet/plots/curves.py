"""The curves of runs, as panels of a figure."""

from collections.abc import Sequence
import os

import numpy as np

from resnet.plots import figures
from resnet.run.history import History, read_history
from resnet.run.workdir import CURVES_FILE

_UPDATES = 'updates'
_THIN_BOLD = 'thin: training; bold: test'


def save_curves(workdir: str) -> None:
  """Draws `curves.png` of the run in `workdir`."""
  history = read_history(workdir)
  figure = draw_curves([history], [history.config['model.name']])
  figures.save(figure, os.path.join(workdir, CURVES_FILE))


def draw_curves(
  histories: Sequence[History], names: Sequence[str]
) -> figures.figure_lib.Figure:
  """Returns a figure of loss, error, learning rate, speed and data wait."""
  return figures.draw(
    panels(histories, names),
    title=', '.join(names) if len(names) < 4 else f'{len(names)} runs',
    note=_THIN_BOLD,
    columns=3,
  )


def panels(
  histories: Sequence[History], names: Sequence[str]
) -> list[figures.Panel]:
  """Returns the panels of `draw_curves`; `names` are those of the runs."""
  both = [
    ('Loss', 'loss', 'loss', lambda y: y),
    ('Error', 'top1', 'top-1 error, %', error_percent),
  ]
  result = []
  for title, metric, y_label, convert in both:
    lines = []
    for i, (history, name) in enumerate(zip(histories, names, strict=True)):
      for split, bold in (('train', False), ('eval', True)):
        x, y = history.series(f'{split}/{metric}')
        # Of a run that was never evaluated the training curve has the name.
        label = name if bold or not len(history.series('eval/top1')[0]) else ''
        lines.append(
          figures.Line(label=label, style=i, x=x, y=convert(y), bold=bold)
        )
      x, y = history.series(f'eval_ema/{metric}')
      if len(x):
        averages = figures.Line(
          label=f'{name}, moving averages',
          style=len(histories) + i,
          x=x,
          y=convert(y),
          bold=True,
        )
        lines.append(averages)
    result.append(
      figures.Panel(title=title, x_label=_UPDATES, y_label=y_label, lines=lines)
    )
  for title, metric, label, y_range in (
    ('Learning rate', 'learning_rate', 'learning rate', None),
    ('Speed', 'images_per_second', 'images/s', None),
    ('Data wait', 'data_wait', 'share of the time', (0.0, 1.0)),
  ):
    lines = []
    for i, (history, name) in enumerate(zip(histories, names, strict=True)):
      x, y = history.series(metric)
      lines.append(figures.Line(label=name, style=i, x=x, y=y))
    result.append(
      figures.Panel(
        title=title,
        x_label=_UPDATES,
        y_label=label,
        lines=lines,
        y_range=y_range,
      )
    )
  return result


def error_percent(top1: np.ndarray) -> np.ndarray:
  """Accuracy as a fraction -> error in %."""
  return 100 * (1 - top1)
