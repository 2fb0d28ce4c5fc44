"""The reliability diagram: its boxes are the numbers of the bins."""

import numpy as np
import pytest

from resnet.reporting.reliability import draw_reliability


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
  # The error that is printed is the mean gap over the images.
  gaps = [height for *_, height in gap]
  assert np.dot(gaps, [0.25, 0.75]) == pytest.approx(0.325)
  (diagonal,) = accuracy.lines
  np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
  assert accuracy.get_xlim() == accuracy.get_ylim() == (0, 1)


def test_a_diagram_of_one_sure_bin_has_one_box_of_each():
  bins = dict.fromkeys(('count', 'confidence', 'top1'), np.array([0.0, 9.0]))
  figure = draw_reliability(bins, title='All right')
  assert [len(found) for found in boxes(figure.axes[0])] == [1, 1]
