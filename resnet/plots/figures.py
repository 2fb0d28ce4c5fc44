"""Creates figures and draws curves. Only this module imports matplotlib.

Figures are readable in black and white and by colour-blind people: every curve
has its own dash pattern, and the colours are those of Okabe and Ito.
"""

from collections.abc import Sequence
import io
import itertools
import math
import os
from typing import Any

import matplotlib
from matplotlib import figure as figure_lib
import numpy as np

from resnet.files import write_atomically

Figure = figure_lib.Figure

COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#56B4E9',
  '#E69F00',
  '#000000',
)
_DASHES = ('-', '--', '-.', ':', (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
_DPI = 130


def create(
  titles: Sequence[str],
  *,
  title: str,
  note: str = '',
  columns: int = 2,
  share_y: bool = False,
) -> tuple[Figure, list[Any]]:
  """Returns a figure and its axes, one for each of `titles`, row by row.

  A row has at most `columns` axes, which fill it; the first rows may have fewer
  and wider ones. The note is below them, in small type. With `share_y` all axes
  have the same y range.
  """
  count, columns = len(titles), min(columns, len(titles))
  rows = -(-count // columns)
  size = (5.2 * columns, 3.6 * rows + 0.6)  # Inches.
  figure = Figure(figsize=size, layout='constrained')
  ends = [count * row // rows for row in range(rows + 1)]
  width = math.lcm(*np.diff(ends).tolist())
  mosaic = [
    np.repeat(range(start, end), width // (end - start)).tolist()
    for start, end in itertools.pairwise(ends)
  ]
  axes = list(figure.subplot_mosaic(mosaic, sharey=share_y).values())
  for ax, axes_title in zip(axes, titles, strict=True):
    ax.set_title(axes_title)
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
  figure.suptitle(title)
  figure.supxlabel(note, fontsize=8)
  return figure, axes


def draw_curve(
  ax: Any,
  x: Any,
  y: Any,
  *,
  style: int,
  label: str = '',
  spread: np.ndarray | None = None,
  bold: bool = True,
) -> None:
  """Draws a curve [N] and, if `spread` is given, a band around it.

  Values that are not finite leave a gap. The `style` is the index of the colour
  and the dash pattern, `spread` half the height of the band, [N]. Curves of
  tests are bold; the others are thin lines.
  """
  color = COLORS[style % len(COLORS)]
  ax.plot(
    x,
    y,
    color=color,
    linestyle=_DASHES[style % len(_DASHES)],
    linewidth=2.2 if bold else 0.8,
    marker='o' if len(x) == 1 else None,  # A line needs two points.
    label=label,
  )
  if spread is not None:
    ax.fill_between(
      x, y - spread, y + spread, color=color, alpha=0.15, linewidth=0
    )


def draw_star(ax: Any, x: float, y: float, *, label: str = '') -> None:
  """Marks a point with a star."""
  look = {'markersize': 13, 'color': COLORS[5], 'markeredgecolor': 'black'}
  ax.plot([x], [y], marker='*', linestyle='', zorder=3, label=label, **look)


def save(figure: Figure, path: str) -> None:
  """Writes a .png or .svg atomically; equal figures give equal bytes."""
  kind = os.path.splitext(path)[1].removeprefix('.')
  buffer = io.BytesIO()
  metadata: dict[str, Any] = {'Date': None} if kind == 'svg' else {}
  with matplotlib.rc_context({'svg.hashsalt': 'resnet'}):
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
  write_atomically(path, buffer.getvalue())
