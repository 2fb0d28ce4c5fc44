"""Studies as grids of ordinary runs.

A grid has a cell for each combination of group, depth and seed. A cell is a run
with the recipe of the data set and the fields of its group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from configs import cifar10, fashion_mnist, imagenet, paper_digits
from resnet.errors import InputError, nearest

Fields = dict[str, Any]
# The result of a cell as stored in results.json.
Result = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A comparison of groups of runs.

  Attributes:
    title: title of the figure.
    groups: for each group, by name, the config fields that it changes in the
      recipe. 'model.name' is a format string without the prefix 'cifar_'. {0}
      is the depth, and {1} the depth if bottlenecks replace the basic blocks.
    depths: numbers of layers by data set; the first data set is the default.
    fields: fields of the config that all groups change.
    num_seeds: default number of seeds.
    shows: what the figure shows: 'error' or 'loss' over updates, 'responses' by
      layer, or 'gains', the test errors of successive groups.
  """

  title: str
  groups: Mapping[str, Fields]
  depths: Mapping[str, Sequence[int]]
  fields: Fields = dataclasses.field(default_factory=dict)
  num_seeds: int = 3
  shows: str = 'error'


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a grid: group, number of layers, seed."""

  group: str
  depth: int
  seed: int

  @property
  def name(self) -> str:
    """Name of the folder of the run."""
    return f'{self.group}{self.depth}_seed{self.seed}'


@dataclasses.dataclass(frozen=True)
class Grid:
  """A grid and its folder; `cells` include those of earlier commands."""

  workdir: str
  name: str
  study: Study
  data: str
  cells: Sequence[Cell]

  def folder(self, cell: Cell) -> str:
    """Returns the workdir of a run."""
    return os.path.join(self.workdir, 'cells', cell.name)


# Recipes by data set.
RECIPES: dict[str, Callable[[str], Any]] = {
  'digits': paper_digits.get_config,
  'fashion_mnist': fashion_mnist.get_config,
  'cifar10': cifar10.get_config,
  'imagenet2012': lambda _: imagenet.get_config(),
}


def cells(
  study: Study,
  data: str,
  groups: Sequence[str] | None = None,
  depths: Sequence[int] | None = None,
  seeds: Sequence[int] | None = None,
) -> list[Cell]:
  """Returns the cells of a grid, ordered by seed; None means the default."""
  if data not in study.depths:
    known = ', '.join(study.depths)
    raise InputError(f'--data={data} is not one of {known}.')
  for group in groups or ():
    if group not in study.groups:
      near = nearest(group, study.groups)
      raise InputError(f'--groups: unknown group {group!r}.{near}')
  asked = [
    Cell(group, depth, seed)
    for seed in seeds or range(study.num_seeds)
    for depth in depths or study.depths[data]
    for group in groups or study.groups
  ]
  return list(dict.fromkeys(asked))


def _net(study: Study, group: str, depth: int) -> str:
  name = study.groups[group].get('model.name', 'resnet{0}')
  # A bottleneck has three layers, a basic block two.
  return name.format(depth, (depth - 2) // 2 * 3 + 2)


def label(study: Study, group: str, depth: int) -> str:
  """Returns a network's name, with its group if other groups share the name."""
  nets = [_net(study, other, depth) for other in study.groups]
  net = _net(study, group, depth)
  return net if nets.count(net) == 1 else f'{net} {group}'


def config_of(
  study: Study, data: str, cell: Cell, data_dir: str | None = None
) -> Any:
  """Returns the config of a cell, a ConfigDict."""
  net = _net(study, cell.group, cell.depth)
  config = RECIPES[data](net)
  config.update_from_flattened_dict(
    {
      **study.fields,
      **study.groups[cell.group],
      'model.name': net if data == 'imagenet2012' else f'cifar_{net}',
      'seed': cell.seed,
      'data.data_dir': data_dir,
    }
  )
  return config


def by_net(results: Iterable[Result]) -> dict[tuple[str, int], list[Result]]:
  """Groups the results of cells by (group, depth)."""
  nets: dict[tuple[str, int], list[Result]] = {}
  for result in results:
    nets.setdefault((result['group'], result['depth']), []).append(result)
  return nets
