"""What each group of a grid brings against the one before it."""

from collections.abc import Mapping, Sequence
import statistics
from typing import Any

Cells = Sequence[Mapping[str, Any]]


def by_group(cells: Cells) -> Mapping[str, Cells]:
  """Returns the complete cells of each group, in the order of the grid."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for cell in cells:
    groups.setdefault(cell['group'], []).append(cell)
  return groups


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
  """Says whether errors fell or rose, which must be beyond the seeds' spread.

  Args:
    before: test errors, %, a value a seed.
    after: likewise, with something added.

  Returns:
    'better' or 'worse' only where the two ranges of mean ± standard deviation
    do not touch.
  """
  if min(len(before), len(after)) < 2:
    return 'one seed: no claim'
  gap = statistics.mean(before) - statistics.mean(after)
  if abs(gap) <= statistics.stdev(before) + statistics.stdev(after):
    return 'within the spread'
  return 'better' if gap > 0 else 'worse'


def rows(cells: Cells) -> list[list[str]]:
  """Returns a table, its titles first; of cells as results.json has them.

  Images/s are those of training, the mean over the seeds.
  """
  groups = by_group(cells)
  result = [
    [
      'added',
      'fall of the test error, points',
      'against the row before',
      'fall since the first row',
      'against the first row',
      'images/s, share of the first row',
    ]
  ]
  names = list(groups)
  for before, name in zip([None, *names], names, strict=False):
    made, first = groups[name], groups[names[0]]
    if before is None:
      result.append([name, *[''] * 4, '1.00'])
      continue
    result.append(
      [
        name,
        *_compare(groups[before], made),
        *_compare(first, made),
        f'{_speed(made) / _speed(first):.2f}',
      ]
    )
  return result


def _compare(before: Cells, after: Cells) -> tuple[str, str]:
  old, new = ([cell['test_error'] for cell in x] for x in (before, after))
  fall = statistics.mean(old) - statistics.mean(new)
  return f'{fall:+.2f}', verdict(old, new)


def _speed(cells: Cells) -> float:
  return statistics.mean(cell['timing']['images_per_second'] for cell in cells)
