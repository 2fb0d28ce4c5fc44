"""Figures: bands, labels that do not touch, the same bytes each time."""

import math
import re

import numpy as np
import pytest

from resnet.reporting import figures
from resnet.reporting.reliability import draw_reliability


def line(label, y, style=0, **fields):
  y = np.asarray(y, np.float64)
  x = np.arange(len(y))
  return figures.Line(label=label, style=style, x=x, y=y, **fields)


def panel(lines, **fields):
  return figures.Panel(
    title='Title', x_label='x', y_label='y', lines=lines, **fields
  )


def test_band_is_mean_and_deviation_at_common_steps():
  x, mean, spread = figures.band(
    [
      (np.array([1, 2, 4]), np.array([1.0, 2.0, 3.0])),
      (np.array([1, 3, 4]), np.array([3.0, 9.0, 7.0])),
    ]
  )
  np.testing.assert_array_equal(x, [1, 4])
  np.testing.assert_array_equal(mean, [2, 5])
  np.testing.assert_allclose(spread, [math.sqrt(2), math.sqrt(8)])
  _, _, spread = figures.band([(np.array([1]), np.array([2.0]))])
  assert spread is None


@pytest.mark.parametrize('height', [0.0, 40.0, 100.0])
def test_labels_of_a_drawn_figure_do_not_overlap(height):
  lines = [line(f'net {i}', [100.0, height + 0.1 * i]) for i in range(5)]
  figure = figures.draw(
    [panel(lines, y_range=(0.0, 100.0)), panel(lines)], title='Two'
  )
  figures.encode(figure, 'png')  # Lays it out.
  renderer = figure.canvas.get_renderer()
  for ax in figure.axes:
    boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert len(boxes) == 5
    assert not any(
      a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]
    )
    # Beside the axes, not over the curves, and inside of the picture.
    assert all(box.x0 >= ax.get_window_extent(renderer).x1 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(0 <= text.xy[1] <= 1 for text in ax.texts)


def test_labels_are_at_the_last_values_unless_they_touch():
  # The last finite values; two touch and share the way.
  ends = [[0.0, 10.0, math.nan], [30.0], [80.0], [80.0]]
  lines = [line('net', end) for end in ends]
  figure = figures.draw([panel(lines, y_range=(0.0, 100.0))], title='One')
  heights = [text.xy[1] for text in figure.axes[0].texts]
  assert heights[:2] == pytest.approx([0.1, 0.3], abs=0.01)
  assert heights[2] < heights[3]
  assert sum(heights[2:]) / 2 == pytest.approx(0.8, abs=0.01)


def test_a_panel_without_values_says_so():
  figure = figures.draw([panel([line('net', [math.nan])])], title='None')
  assert [t.get_text() for t in figure.axes[0].texts] == ['nothing measured']


@pytest.mark.parametrize('kind', ['png', 'svg'])
def test_the_same_figure_has_the_same_bytes(kind, tmp_path):
  def draw():
    lines = [line('a', [1, 2], spread=np.ones(2)), line('b', [3, 1])]
    return figures.draw([panel(lines)], title='Same', note='note')

  path = tmp_path / f'figure.{kind}'
  figures.save(draw(), str(path))
  assert path.read_bytes() == figures.encode(draw(), kind)
  assert list(tmp_path.iterdir()) == [path]


def test_lines_of_other_styles_differ_without_colour():
  def dashes(styles):
    lines = [line('', [1, 2], style=i) for i in styles]
    svg = figures.encode(figures.draw([panel(lines)], title=''), 'svg')
    return set(re.findall(rb'stroke-dasharray: ([^;"]+)', svg))

  # The first is solid.
  assert not dashes([0])
  assert len(dashes(range(6))) == 5


def boxes(ax):
  """(x, y, width, height) of the boxes that are drawn, in two containers."""
  return [
    [
      (p.get_x(), p.get_y(), p.get_width(), p.get_height())
      for p in container
      if np.isfinite(p.get_height())
    ]
    for container in ax.containers
  ]


def test_boxes_are_accuracy_gap_and_share_of_images():
  figure = draw_reliability(
    {
      'count': np.array([0.0, 2.0, 0.0, 6.0]),
      'confidence': np.array([0.0, 0.8, 0.0, 5.4]),
      'top1': np.array([0.0, 1.0, 0.0, 3.0]),
    },
    title='Made up',
  )
  accuracy, images = figure.axes
  right, gap = boxes(accuracy)
  np.testing.assert_allclose(
    right, [(0.25, 0, 0.25, 0.5), (0.75, 0, 0.25, 0.5)]
  )
  # In the second bin too unsure by 0.1, in the last too sure by 0.4.
  np.testing.assert_allclose(
    gap, [(0.25, 0.4, 0.25, 0.1), (0.75, 0.5, 0.25, 0.4)]
  )
  (shares,) = boxes(images)
  assert [height for *_, height in shares] == [0, 0.25, 0, 0.75]
  (diagonal,) = accuracy.lines
  np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
  assert accuracy.get_xlim() == accuracy.get_ylim() == (0, 1)
