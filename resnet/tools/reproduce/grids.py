"""Studies as grids of ordinary runs.

A grid has a cell for each combination of group, depth and seed. A cell is a run
with the recipe of the data set and the fields of its group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from configs import cifar10, fashion_mnist, imagenet, imagenette, paper_digits
from resnet.errors import InputError, nearest

Fields = dict[str, Any]
# The result of a cell as stored in results.json.
Result = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A comparison of groups of runs.

  Attributes:
    title: title of the figure.
    source: what it repeats, in --help.
    groups: for each group, by name, the config fields that it changes in the
      recipe. 'model.name' is the {net} of `spec`, a format string: {0} is the
      depth, and {1} the depth if bottlenecks replace the basic blocks.
    depths: numbers of layers by data set; the first data set is the default.
    spec: argument of the recipe, a format string of {group} and {net}.
    fields: fields of the config that all groups change.
    num_seeds: default number of seeds.
    shows: what the figure shows: 'error' or 'loss' over updates, 'responses' by
      layer, 'gains', the test errors of successive groups, or 'accuracy' over
      epochs.
  """

  title: str
  source: str
  groups: Mapping[str, Fields]
  depths: Mapping[str, Sequence[int]]
  spec: str = '{net}'
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
    # Keep the depth apart from the number in 'v2' or '128x5'.
    between = '_' if self.group[-1].isdigit() else ''
    return f'{self.group}{between}{self.depth}_seed{self.seed}'


@dataclasses.dataclass(frozen=True)
class Grid:
  """A grid and its folder; `cells` include those of earlier commands.

  `epochs` is the length of the short recipe; None means the usual recipe.
  """

  workdir: str
  name: str
  study: Study
  data: str
  cells: Sequence[Cell]
  epochs: int | None = None

  @property
  def identity(self) -> dict[str, Any]:
    """What all commands that share the folder must have in common."""
    return {'experiment': self.name, 'data': self.data, 'epochs': self.epochs}

  @property
  def arguments(self) -> str:
    """The arguments of a command that runs these cells."""
    parts, usual = [arguments(**self.identity)], cells(self.study, self.data)
    for name in ('group', 'depth', 'seed'):
      ours, theirs = (
        dict.fromkeys(getattr(cell, name) for cell in some)
        for some in (self.cells, usual)
      )
      if ours.keys() != theirs.keys():
        parts.append(f'--{name}s={",".join(map(str, ours))}')
    return ' '.join(parts)

  @property
  def data_title(self) -> str:
    """Name of the data set in tables and figures."""
    return _TITLES.get(self.data, self.data)

  @property
  def setting(self) -> str:
    """The data set and the length of the short recipe, for titles."""
    length = '' if self.epochs is None else f', {self.epochs} epochs'
    return f'{self.data_title}{length}'

  def folder(self, cell: Cell) -> str:
    """Returns the workdir of a run."""
    return os.path.join(self.workdir, 'cells', cell.name)


# Recipes by data set; their argument is Study.spec.
RECIPES: dict[str, Callable[[str], Any]] = {
  'digits': paper_digits.get_config,
  'fashion_mnist': fashion_mnist.get_config,
  'cifar10': cifar10.get_config,
  'imagenet2012': imagenet.get_config,
  'folder': imagenette.get_config,
}
# Sets that have the recipe, the depths and the published values of another.
_SAME_AS = {'cifar10_jpeg': 'cifar10', 'imagenette_raw': 'folder'}
_TITLES = {
  'cifar10_jpeg': 'JPEG copies of CIFAR-10',
  'folder': 'Imagenette',
  'imagenette_raw': 'Imagenette',
}


def arguments(experiment: str, data: str, epochs: int | None) -> str:
  """Returns the arguments that all commands of a grid have in common."""
  length = '' if epochs is None else f' --epochs={epochs}'
  folder = ' --data-dir=DIR' if data in _TITLES else ''
  return f'{experiment} --data={data}{folder}{length}'


def data_sets(study: Study) -> list[str]:
  """Returns the names of the data sets of a study, the default first."""
  copies = [name for name, other in _SAME_AS.items() if other in study.depths]
  return [*study.depths, *copies]


def cells(
  study: Study,
  data: str,
  groups: Sequence[str] | None = None,
  depths: Sequence[int] | None = None,
  seeds: Sequence[int] | None = None,
) -> list[Cell]:
  """Returns the cells of a grid, ordered by seed; None means the default."""
  known = data_sets(study)
  if data not in known:
    raise InputError(f'--data={data} is not one of {", ".join(known)}.')
  for group in groups or ():
    if group not in study.groups:
      near = nearest(group, study.groups)
      raise InputError(f'--groups: unknown group {group!r}.{near}')
  asked = [
    Cell(group, depth, seed)
    for seed in seeds or range(study.num_seeds)
    for depth in depths or study.depths[_SAME_AS.get(data, data)]
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
  study: Study,
  data: str,
  cell: Cell,
  data_dir: str | None = None,
  epochs: int | None = None,
) -> Any:
  """Returns the config of a cell, a ConfigDict."""
  net = _net(study, cell.group, cell.depth)
  spec = study.spec.format(group=cell.group, net=net)
  recipe = _SAME_AS.get(data, data)
  if epochs is not None:
    if recipe != 'cifar10' or 'num_epochs' in study.fields:
      raise InputError(
        f'--epochs={epochs}: {study.title!r} on {data} has no short recipe:'
        ' leave out --epochs.'
      )
    spec += f',{epochs}'
  config = RECIPES[recipe](spec)
  fields = {**study.fields, **study.groups[cell.group]}
  fields.pop('model.name', None)  # It is part of `spec`.
  if recipe != data:
    fields['data.name'] = data
  config.update_from_flattened_dict(
    {**fields, 'seed': cell.seed, 'data.data_dir': data_dir}
  )
  return config


def by_net(results: Iterable[Result]) -> dict[tuple[str, int], list[Result]]:
  """Groups the results of cells by (group, depth)."""
  nets: dict[tuple[str, int], list[Result]] = {}
  for result in results:
    nets.setdefault((result['group'], result['depth']), []).append(result)
  return nets
