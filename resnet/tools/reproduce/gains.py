"""What each group of a grid gains over the one before it."""

from collections.abc import Sequence
import statistics

from resnet.tools.reproduce.grids import Result, by_net


def rows(results: Sequence[Result]) -> list[list[str]]:
  """Returns a row for each net, depth by depth, titles first."""
  titles = ['added', 'fall of the test error, points', 'against the row before']
  table, before = [titles], {}
  nets = sorted(by_net(results).items(), key=lambda net: net[0][1])
  for (_, depth), runs in nets:
    errors = [run['test_error'] for run in runs]
    row = [runs[0]['label'], '', '']
    if depth in before:
      fall = statistics.mean(before[depth]) - statistics.mean(errors)
      row[1:] = [f'{fall:+.2f}', verdict(before[depth], errors)]
    table.append(row)
    before[depth] = errors
  return table


def verdict(before: Sequence[float], after: Sequence[float]) -> str:
  """Says whether errors fell or rose by more than the spread of the seeds.

  Args:
    before: test errors, %, one for each seed.
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
