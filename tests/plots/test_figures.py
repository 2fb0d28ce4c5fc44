"""Figures: curves and their bands, the same bytes each time, reliability."""

import numpy as np
import pytest

from resnet.plots import figures
from resnet.plots.reliability import draw_reliability


def test_a_curve_has_a_band_and_a_place_in_the_legend():
  _, (ax,) = figures.create(['Title'], title='One')
  y = np.array([3.0, 1.0])
  spread = np.array([0.5, 0.25])
  figures.draw_curve(ax, [1, 2], y, style=0, label='net', spread=spread)
  figures.draw_curve(ax, [1], [2.0], style=1, bold=False)
  bold, thin = ax.lines
  assert bold.get_linewidth() > thin.get_linewidth()
  assert (bold.get_linestyle(), bold.get_color()) != (
    thin.get_linestyle(),
    thin.get_color(),
  )
  assert thin.get_marker() == 'o'  # A single value can be seen.
  assert ax.get_legend_handles_labels()[1] == ['net']
  (band,) = ax.collections
  corners = band.get_paths()[0].vertices
  assert {(1.0, 2.5), (1.0, 3.5), (2.0, 0.75), (2.0, 1.25)} <= {
    tuple(corner) for corner in corners
  }


def test_axes_fill_all_rows_and_wider_ones_come_first():
  titles = list('abcde')
  figure, axes = figures.create(titles, title='Five', columns=3)
  assert figure.axes == axes and [ax.get_title() for ax in axes] == titles
  wide, _, narrow, *_ = (ax.get_position().width for ax in axes)
  assert wide > 1.3 * narrow


@pytest.mark.parametrize('kind', ['png', 'svg'])
def test_the_same_figure_has_the_same_bytes(kind, tmp_path):
  def draw():
    figure, axes = figures.create(list('abc'), title='Same', note='note')
    for i, ax in enumerate(axes):
      y = np.array([1.0, 2.0])
      figures.draw_curve(ax, y, y, style=i, label='a', spread=y / 2)
      ax.legend()
    return figure

  paths = [tmp_path / f'{name}.{kind}' for name in 'ab']
  for path in paths:
    figures.save(draw(), str(path))
  assert paths[0].read_bytes() == paths[1].read_bytes()
  assert sorted(tmp_path.iterdir()) == paths


def test_boxes_are_accuracy_gap_and_share_of_images():
  figure = draw_reliability(
    {
      'count': np.array([2.0, 6.0, 0.0]),
      'confidence': np.array([0.8, 5.4, 0.0]),
      'top1': np.array([1.0, 3.0, 0.0]),
    },
    title='Made up',
  )
  accuracy, images = figure.axes
  right, gap = accuracy.containers
  none = np.nan  # A bin without images.
  np.testing.assert_equal([box.get_height() for box in right], [0.5, 0.5, none])
  # In the first bin the confidence is too low by 0.1, in the second too high by
  # 0.4.
  np.testing.assert_equal([box.get_y() for box in gap], [0.5, 0.5, none])
  np.testing.assert_allclose([box.get_height() for box in gap][:2], [-0.1, 0.4])
  (shares,) = images.containers
  assert [box.get_height() for box in shares] == [0.25, 0.75, 0.0]
