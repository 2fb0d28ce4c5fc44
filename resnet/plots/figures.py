"""Figures of runs. The only file that knows matplotlib.

Readable in black and white and by the colour-blind: every line has its own dash
and its name beside it; the colours are those of Okabe and Ito.
"""

from collections.abc import Sequence
import dataclasses
import io
import os
from typing import Any

import matplotlib
from matplotlib import figure as figure_lib
from matplotlib import ticker
from matplotlib.backends import backend_agg
import numpy as np

from resnet.files import write_atomically

_COLORS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#56B4E9',
  '#E69F00',
  '#000000',
)
_DASHES = ('-', '--', '-.', ':', (0, (6, 1, 1, 1, 1, 1)), (0, (3, 1)))
_THIN, _BOLD = 0.8, 2.2
_DPI = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A curve, or the mean of several with a band about it.

  Attributes:
    label: written at its end; '' is none.
    style: index of colour and dash: lines of one style belong together.
    x: [N].
    y: [N]; not finite: a gap.
    spread: [N], half the height of the band, or None.
    bold: for a test curve; thin: for a training curve.
  """

  label: str
  style: int
  x: np.ndarray
  y: np.ndarray
  spread: np.ndarray | None = None
  bold: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars:
  """Boxes side by side.

  Attributes:
    style: index of the colour.
    edges: [N + 1], where they begin and end in x.
    low: [N], where they begin in y; not finite: none is drawn.
    high: [N], where they end.
    hatched: strokes in the colour, instead of an area.
  """

  style: int
  edges: np.ndarray
  low: np.ndarray
  high: np.ndarray
  hatched: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """Axes with lines.

  Attributes:
    title: above.
    x_label: below.
    y_label: at the left.
    lines: in it; without any, the panel says so.
    bars: behind the lines.
    x_range: lowest and highest value shown; None: of the lines, whole numbers.
    y_range: lowest and highest value shown; None: of the lines.
    x_names: of x = 0, 1, ..., instead of numbers.
  """

  title: str
  x_label: str
  y_label: str
  lines: Sequence[Line] = ()
  bars: Sequence[Bars] = ()
  x_range: tuple[float, float] | None = None
  y_range: tuple[float, float] | None = None
  x_names: Sequence[str] = ()


def draw(
  panels: Sequence[Panel],
  *,
  title: str,
  note: str = '',
  columns: int = 2,
  share_y: bool = False,
) -> figure_lib.Figure:
  """Returns a figure of panels, row by row."""
  columns = min(columns, len(panels))
  rows = -(-len(panels) // columns)
  labels = [line.label for panel in panels for line in panel.lines]
  longest = max(map(len, labels), default=0)
  width = 4.2 + 0.09 * longest  # Inches; the labels stand beside the axes.
  figure = figure_lib.Figure(
    figsize=(width * columns, 3.6 * rows + 0.6), layout='constrained'
  )
  axes = list(
    figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat
  )
  for ax, panel in zip(axes, panels, strict=False):
    _draw_panel(ax, panel)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  figure.suptitle(title)
  if note:
    figure.supxlabel(note, fontsize=8)
  # Labels stand beside the ends of lines: where those are is known only now.
  backend_agg.FigureCanvasAgg(figure).draw()
  for ax, panel in zip(axes, panels, strict=False):
    _label_lines(ax, panel)
  return figure


def save(figure: figure_lib.Figure, path: str) -> None:
  """Writes a figure whole or not at all, in the format of the path's end."""
  kind = os.path.splitext(path)[1].removeprefix('.')
  write_atomically(path, encode(figure, kind))


def encode(figure: figure_lib.Figure, kind: str) -> bytes:
  """Returns a figure as 'png' or 'svg'; the same figure, the same bytes."""
  buffer = io.BytesIO()
  metadata: dict[str, Any] = {'Date': None} if kind == 'svg' else {}
  with matplotlib.rc_context({'svg.hashsalt': 'resnet'}):
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
  return buffer.getvalue()


def _draw_panel(ax: Any, panel: Panel) -> None:
  ax.set_title(panel.title)
  ax.set_xlabel(panel.x_label)
  ax.set_ylabel(panel.y_label)
  ax.grid(alpha=0.3)
  if panel.x_names:
    ax.set_xticks(range(len(panel.x_names)), panel.x_names, rotation=30)
  elif panel.x_range:
    ax.set_xlim(*panel.x_range)
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  else:
    ax.xaxis.set_major_locator(ticker.MaxNLocator('auto', integer=True))
  ax.spines[['top', 'right']].set_visible(False)
  for bars in panel.bars:
    _draw_bars(ax, bars)
  for line in panel.lines:
    color, dash = _style(line)
    ax.plot(
      line.x,
      line.y,
      color=color,
      linestyle=dash,
      linewidth=_BOLD if line.bold else _THIN,
      # A single point is no line, and names are no numbers.
      marker='o' if panel.x_names or len(line.x) == 1 else None,
    )
    if line.spread is not None:
      ax.fill_between(
        line.x,
        line.y - line.spread,
        line.y + line.spread,
        color=color,
        alpha=0.15,
        linewidth=0,
      )
  if panel.y_range:
    ax.set_ylim(*panel.y_range)
  values = [line.y for line in panel.lines] + [b.high for b in panel.bars]
  if not any(np.isfinite(value).any() for value in values):
    ax.text(0.5, 0.5, 'nothing measured', transform=ax.transAxes, ha='center')
  else:
    ax.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))


def _draw_bars(ax: Any, bars: Bars) -> None:
  color = _COLORS[bars.style % len(_COLORS)]
  look: dict[str, Any] = {'color': color, 'edgecolor': 'white'}
  if bars.hatched:
    look = {'color': 'none', 'edgecolor': color, 'hatch': '////'}
  ax.bar(
    bars.edges[:-1],
    bars.high - bars.low,
    width=np.diff(bars.edges),
    bottom=bars.low,
    align='edge',
    linewidth=_THIN,
    zorder=2,
    **look,
  )


def _style(line: Line) -> tuple[str, Any]:
  return (
    _COLORS[line.style % len(_COLORS)],
    _DASHES[line.style % len(_DASHES)],
  )


def _label_lines(ax: Any, panel: Panel) -> None:
  """Writes names beside the ends of lines, moved apart where they touch."""
  ends = []
  for line in panel.lines:
    finite = np.flatnonzero(np.isfinite(line.y))
    if line.label and finite.size:
      end = (line.x[finite[-1]], line.y[finite[-1]])
      ends.append((ax.transData.transform(end)[1], line))
  if not ends:
    return
  ends.sort(key=lambda end: end[0])
  low, high = ax.transAxes.transform([(0, 0), (0, 1)])[:, 1]
  gap = 11 * ax.figure.dpi / 72
  inside = [min(max(y, low), high) for y, _ in ends]
  heights = _apart(inside, gap, low, high)
  for height, (_, line) in zip(heights, ends, strict=True):
    ax.annotate(
      line.label,
      (1.01, (height - low) / (high - low)),
      xycoords='axes fraction',
      color=_style(line)[0],
      fontsize=9,
      fontweight='bold' if line.bold else 'normal',
      va='center',
      annotation_clip=False,
    )


def _apart(
  heights: Sequence[float], gap: float, low: float, high: float
) -> list[float]:
  """Returns sorted heights moved apart by as little as can be, within a range.

  Of h[i] - i * gap this is the isotonic regression: what touches is pooled.
  """
  pools: list[list[float]] = []
  for i, height in enumerate(heights):
    pools.append([height - i * gap])
    while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
      last = pools.pop()
      pools[-1].extend(last)
  moved = [float(np.mean(pool)) for pool in pools for _ in pool]
  top = high - (len(heights) - 1) * gap
  return [max(min(m, top), low) + i * gap for i, m in enumerate(moved)]


def band(
  curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Returns x, mean and standard deviation of curves, where all have a value.

  Of one curve there is no deviation.
  """
  common = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
  values = [dict(zip(x.tolist(), y, strict=True)) for x, y in curves]
  rows = np.asarray([[v[x] for x in common] for v in values], np.float64)
  spread = rows.std(axis=0, ddof=1) if len(curves) > 1 else None
  return np.asarray(common, np.float64), rows.mean(axis=0), spread
