"""What is claimed of a ladder's rungs."""

import pytest

from resnet.tools import experiments, gains, grid_figures


def cells(errors_by_group):
  return [
    {
      'group': group,
      'label': f'resnet20 {group}',
      'test_error': error,
      'config': {'data.name': 'fashion_mnist'},
    }
    for i in range(3)
    for group, errors in errors_by_group.items()
    for error in errors[i : i + 1]
  ]


@pytest.mark.parametrize(
  ('before', 'after', 'says'),
  [
    # Deviations 0.1 and 0.1.
    ([5.0, 5.1, 4.9], [4.7, 4.8, 4.6], 'better'),
    ([4.7, 4.8, 4.6], [5.0, 5.1, 4.9], 'worse'),
    ([5.0, 5.1, 4.9], [4.81, 4.91, 4.71], 'within the spread'),
    ([5.0, 5.0], [5.0, 5.0], 'within the spread'),
    ([5.0], [1.0], 'one seed: no claim'),
  ],
)
def test_a_fall_is_claimed_beyond_both_spreads_only(before, after, says):
  assert gains.verdict(before, after) == says


ERRORS = {
  'baseline': [9.0, 9.1, 8.9],
  '+a': [8.95, 9.05, 8.85],
  '+b': [8.0, 8.1, 7.9],
}


def spread(median):
  return {'median': median, 'low': median - 0.01, 'high': median + 0.01}


COSTS = {
  'baseline': {'images_per_second': spread(1234.0), 'share': spread(1.0)},
  '+a': {'images_per_second': spread(1110.6), 'share': spread(0.9)},
}


def test_rows_compare_with_the_row_before_and_with_the_first():
  titles, *rows = gains.rows(cells(ERRORS), COSTS)
  within = 'within the spread'
  no_cost = ['not measured'] * 2
  assert rows == [
    ['baseline', '', '', '', '', '1,234', '1.00 (0.99 to 1.01)'],
    ['+a', '+0.05', within, '+0.05', within, '1,111', '0.90 (0.89 to 0.91)'],
    ['+b', '+0.95', 'better', '+1.00', 'better', *no_cost],
  ]
  assert len(titles) == len(rows[0])


def test_the_figure_names_the_rungs_and_shows_the_spread():
  experiment, _ = experiments.find('ladder', None)
  figure = grid_figures.draw(experiment, cells(ERRORS))
  (ax,) = figure.axes
  assert [text.get_text() for text in ax.get_xticklabels()] == list(ERRORS)
  assert ax.lines[0].get_ydata().tolist() == pytest.approx([9.0, 8.95, 8.0])
  vertices = ax.collections[0].get_paths()[0].vertices
  assert vertices[:, 1].max() == pytest.approx(9.1)
  assert vertices[:, 1].min() == pytest.approx(7.9)
