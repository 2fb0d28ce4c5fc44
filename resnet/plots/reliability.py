"""Plots the reliability diagram: accuracy over confidence."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet.plots import figures


def draw_reliability(
  bins: Mapping[str, np.ndarray], *, title: str
) -> figures.Figure:
  """Returns a figure of accuracy and of the share of images over confidence.

  Guo et al. 2017, "On calibration of modern neural networks", Figure 1.

  Args:
    bins: arrays [N] over N equal bins of confidence in 0 .. 1: 'count', the
      number of images; 'confidence', the sum of their confidences; 'top1', the
      number of correct images.
    title: title of the figure.
  """
  count = np.asarray(bins['count'], np.float64)
  # A bin without images has neither accuracy nor confidence.
  images = np.where(count > 0, count, np.nan)
  accuracy = np.asarray(bins['top1'], np.float64) / images
  confidence = np.asarray(bins['confidence'], np.float64) / images
  note = 'hatched: gap between accuracy and mean confidence; diagonal: no gap'
  figure, (left, right) = figures.create(
    ['Accuracy', 'Images'], title=title, note=note
  )
  edges = np.linspace(0, 1, len(count) + 1)
  place = {'x': edges[:-1], 'width': 1 / len(count), 'align': 'edge'}
  bars: dict[str, Any] = {**place, 'zorder': 2}
  area = {**bars, 'color': figures.COLORS[4], 'edgecolor': 'white'}
  left.bar(height=accuracy, **area)
  gap = {**bars, 'color': 'none', 'edgecolor': figures.COLORS[1]}
  left.bar(height=confidence - accuracy, bottom=accuracy, hatch='////', **gap)
  figures.draw_curve(left, [0, 1], [0, 1], style=6, bold=False)
  right.bar(height=count / count.sum(), **area)
  left.set(xlabel='confidence', ylabel='accuracy', xlim=(0, 1), ylim=(0, 1))
  right.set(xlabel='confidence', ylabel='share of all images', xlim=(0, 1))
  return figure
