"""What each group of a grid brings against the one before it."""

from collections.abc import Mapping, Sequence
import statistics
from typing import Any

from resnet.tools.reproduce.costs import Costs

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


def rows(cells: Cells, costs: Costs | None) -> list[list[str]]:
  """Returns a table, its titles first.

  Args:
    cells: complete ones, as results.json has them.
    costs: of the groups; None: they are not measured yet.
  """
  groups = by_group(cells)
  result = [
    [
      'added',
      'fall of the test error, points',
      'against the row before',
      'fall since the first row',
      'against the first row',
      'images/s of a step alone, in turn',
      'share of the first row',
    ]
  ]
  names = list(groups)
  for before, name in zip([None, *names], names, strict=False):
    made, first = groups[name], groups[names[0]]
    if before is None:
      result.append([name, *[''] * 4, *_cost(name, costs)])
      continue
    result.append(
      [
        name,
        *_compare(groups[before], made),
        *_compare(first, made),
        *_cost(name, costs),
      ]
    )
  return result


def _compare(before: Cells, after: Cells) -> tuple[str, str]:
  old, new = ([cell['test_error'] for cell in x] for x in (before, after))
  fall = statistics.mean(old) - statistics.mean(new)
  return f'{fall:+.2f}', verdict(old, new)


def _cost(name: str, costs: Costs | None) -> tuple[str, str]:
  if costs is None or name not in costs:
    return 'not measured', 'not measured'
  rate, share = costs[name]['images_per_second'], costs[name]['share']
  return (
    f'{rate["median"]:,.0f}',
    f'{share["median"]:.2f} ({share["low"]:.2f} to {share["high"]:.2f})',
  )
