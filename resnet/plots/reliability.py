"""The reliability diagram: how often a network is right when it is so sure."""

from collections.abc import Mapping

import numpy as np

from resnet.plots import figures


def draw_reliability(
  bins: Mapping[str, np.ndarray], *, title: str
) -> figures.figure_lib.Figure:
  """Returns accuracy over confidence, and the share of images over confidence.

  Guo et al. 2017, "On calibration of modern neural networks", Figure 1.

  Args:
    bins: of N equal bins of confidence in 0 .. 1, each [N]: 'count', images;
      'confidence', their sum; 'top1', the number of images that are right.
    title: above.
  """
  count = np.asarray(bins['count'], np.float64)
  # A bin without images has neither accuracy nor confidence.
  images = np.where(count > 0, count, np.nan)
  accuracy = np.asarray(bins['top1'], np.float64) / images
  confidence = np.asarray(bins['confidence'], np.float64) / images
  edges = np.linspace(0.0, 1.0, len(count) + 1)
  zeros = np.zeros_like(count)
  unit = np.array([0.0, 1.0])
  diagonal = figures.Line(label='', style=6, x=unit, y=unit, bold=False)
  share = count / count.sum()
  return figures.draw(
    [
      figures.Panel(
        title='Accuracy',
        x_label='confidence',
        y_label='share of the images that are right',
        lines=[diagonal],
        bars=[
          figures.Bars(style=4, edges=edges, low=zeros, high=accuracy),
          figures.Bars(
            style=1,
            edges=edges,
            low=np.minimum(accuracy, confidence),
            high=np.maximum(accuracy, confidence),
            hatched=True,
          ),
        ],
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
      ),
      figures.Panel(
        title='Images',
        x_label='confidence',
        y_label='share of all images',
        bars=[figures.Bars(style=4, edges=edges, low=zeros, high=share)],
        x_range=(0.0, 1.0),
      ),
    ],
    title=title,
    note='hatched: from accuracy to mean confidence; on the diagonal they are'
    ' equal',
  )
