"""Figures: bands, labels that do not touch, the same bytes each time."""

import math

import numpy as np
import pytest

from resnet.plots import figures
from resnet.plots.reliability import draw_reliability


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


def test_labels_of_a_drawn_figure_do_not_overlap():
  lines = [line(f'net {i}', [100.0, 0.1 * i]) for i in range(5)]
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


def test_boxes_are_accuracy_gap_and_share_of_images():
  figure = draw_reliability(
    {
      'count': np.array([2.0, 6.0]),
      'confidence': np.array([0.8, 5.4]),
      'top1': np.array([1.0, 3.0]),
    },
    title='Made up',
  )
  accuracy, images = figure.axes
  right, gap = accuracy.containers
  assert [box.get_height() for box in right] == [0.5, 0.5]
  # In the first bin too unsure by 0.1, in the last too sure by 0.4.
  np.testing.assert_allclose([box.get_y() for box in gap], [0.4, 0.5])
  np.testing.assert_allclose([box.get_height() for box in gap], [0.1, 0.4])
  (shares,) = images.containers
  assert [box.get_height() for box in shares] == [0.25, 0.75]
