"""Figures: bands, labels that do not touch, the same bytes each time."""

import itertools
import math

import numpy as np
import pytest

from resnet.reporting import figures


def line(label, y, **fields):
  y = np.asarray(y, np.float64)
  return figures.Line(label=label, style=0, x=np.arange(len(y)), y=y, **fields)


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


def test_one_curve_has_no_band():
  _, _, spread = figures.band([(np.array([1]), np.array([2.0]))])
  assert spread is None


@pytest.mark.parametrize(
  'heights', [[0, 0, 0], [50, 51, 52], [99, 99, 100], [0, 50, 51, 100]]
)
def test_labels_move_apart_within_the_panel(heights):
  moved = figures._apart(heights, 10, 0, 100)
  assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(moved))
  assert moved[0] >= 0
  assert moved[-1] <= 100 + 1e-9


def test_labels_that_do_not_touch_stay():
  assert figures._apart([10, 30, 70], 10, 0, 100) == [10, 30, 70]
  # What touches shares the way.
  assert figures._apart([10, 50, 50], 10, 0, 100) == [10, 45, 55]


@pytest.mark.parametrize('height', [0.0, 40.0])
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


def test_a_label_is_at_the_last_finite_value():
  lines = [line('net', [0.0, 25.0, math.nan])]
  figure = figures.draw([panel(lines, y_range=(0.0, 100.0))], title='One')
  (text,) = figure.axes[0].texts
  assert text.xy[1] == pytest.approx(0.25, abs=0.01)


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
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_lines_of_other_styles_differ_without_colour():
  styles = [
    figures._style(figures.Line(label='', style=i, x=np.ones(1), y=np.ones(1)))
    for i in range(6)
  ]
  assert len({str(dash) for _, dash in styles}) == 6
