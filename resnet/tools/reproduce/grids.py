"""Experiments as grids of ordinary runs.

A cell is a run: the recipe of its data set, with the fields of its group, its
depth and its seed. The cells of a grid differ in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from configs import cifar10, fashion_mnist, imagenet, paper_digits
from resnet.errors import InputError, nearest

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """One side of a comparison.

  Attributes:
    model: name of the network by its depth, without 'cifar_'.
    fields: of the config, changed from the recipe.
  """

  model: Callable[[int], str]
  fields: Fields = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """What is compared.

  Attributes:
    title: of the figure.
    groups: the sides of the comparison.
    depths: number of layers, by data set; the first set is the default.
    paper: top-1 error, %, by (data set, group, depth), and its source.
    budget: how long the default may take on two cores, by data set.
    num_seeds: how many by default.
    fields: of the config, changed from the recipe for all groups.
    says: what the paper says of it, where that is no number of `paper`.
    shows: 'error' over updates, 'loss' over updates, 'responses' by layer, or
      'gains', the test error by group, each against the one before it.
  """

  title: str
  groups: Mapping[str, Group]
  depths: Mapping[str, Sequence[int]]
  paper: Mapping[tuple[str, str, int], tuple[float, str]]
  budget: Mapping[str, str]
  num_seeds: int = 3
  fields: Fields = dataclasses.field(default_factory=dict)
  says: str = ''
  shows: str = 'error'


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
  """One run of a grid: group, number of layers, seed."""

  group: str
  depth: int
  seed: int

  @property
  def name(self) -> str:
    """Name of the folder of the run."""
    return f'{self.group}{self.depth}_seed{self.seed}'


# The same for all cells of a grid.
RECIPES: dict[str, Callable[[str], Any]] = {
  'digits': paper_digits.get_config,
  'fashion_mnist': fashion_mnist.get_config,
  'cifar10': cifar10.get_config,
  'imagenet2012': lambda _: imagenet.get_config(),
}


def cells(
  experiment: Experiment,
  *,
  data: str,
  groups: Sequence[str] | None = None,
  depths: Sequence[int] | None = None,
  seeds: Sequence[int] | None = None,
) -> list[Cell]:
  """Returns the runs of a grid; None is the declared default.

  Raises:
    InputError: there is no such group.
  """
  for group in groups or ():
    if group not in experiment.groups:
      raise InputError(
        f'There is no group {group!r}.{nearest(group, experiment.groups)}'
      )
  asked = [
    Cell(group, depth, seed)
    for seed in seeds or range(experiment.num_seeds)
    for depth in depths or experiment.depths[data]
    for group in groups or experiment.groups
  ]
  return list(dict.fromkeys(asked))


def label(experiment: Experiment, cell: Cell) -> str:
  """Returns the net, with the group where the net alone does not tell it."""
  nets = [group.model(cell.depth) for group in experiment.groups.values()]
  net = experiment.groups[cell.group].model(cell.depth)
  return net if nets.count(net) == 1 else f'{net} {cell.group}'


def config_of(experiment: Experiment, data: str, cell: Cell) -> Any:
  """Returns the config of a cell, a ConfigDict."""
  group = experiment.groups[cell.group]
  net = group.model(cell.depth)
  config = RECIPES[data](net)
  config.update_from_flattened_dict(
    {
      'model.name': net if data == 'imagenet2012' else f'cifar_{net}',
      'seed': cell.seed,
      **experiment.fields,
      **group.fields,
    }
  )
  return config
