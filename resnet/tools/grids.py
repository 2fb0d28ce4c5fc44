"""The papers' experiments as grids of ordinary runs.

A cell is a run: the recipe of its data set, with the fields of its group, its
depth and its seed. The cells of a grid differ in nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from configs import cifar10, fashion_mnist, paper_digits, resnet18
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
    shows: 'error' over updates, 'loss' over updates, or 'responses' by layer.
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
  'imagenet2012': lambda _: resnet18.get_config(),
}

_TABLE_6 = 'He et al. 2016, Table 6'
_FIGURE_6 = 'He et al. 2016, read off Figure 6'
_TABLE_2 = 'He et al. 2016, Table 2, ten crops'
_TABLE_3 = 'He et al. 2016, Table 3, ten crops'
_V2_TABLE_2 = '"Identity mappings", Table 2, median of 5'
_CIFAR_ERRORS = {
  20: 8.75,
  32: 7.51,
  44: 7.17,
  56: 6.97,
  110: 6.43,
  1202: 7.93,
}
_RESIDUAL = Group(model='resnet{}'.format)
_PLAIN = Group(model='plain{}'.format)
_RESIDUAL_ON_CIFAR = {
  ('cifar10', 'residual', depth): (error, _TABLE_6)
  for depth, error in _CIFAR_ERRORS.items()
} | {
  ('cifar10', 'residual', 110): (6.43, f'{_TABLE_6}: best of 5, 6.61 ± 0.16')
}
_ON_CIFAR = _RESIDUAL_ON_CIFAR | {
  ('cifar10', 'plain', 20): (9.5, _FIGURE_6),
  ('cifar10', 'plain', 56): (13.5, _FIGURE_6),
  ('cifar10', 'plain', 110): (60.0, f'{_FIGURE_6}: more than that'),
}


def _bottleneck_depth(basic_depth: int) -> int:
  """Layers with as many bottlenecks of three as basic blocks of two."""
  if basic_depth % 6 != 2:
    raise InputError(
      f'--depths={basic_depth}: basic blocks make 6n + 2 layers, such as 20, 56'
      ' or 110.'
    )
  return (basic_depth - 2) // 2 * 3 + 2


EXPERIMENTS: dict[str, Experiment] = {
  'degradation': Experiment(
    title='Plain and residual nets over depth',
    groups={
      'plain': _PLAIN,
      # Table 2 compares parameter-free shortcuts.
      'residual': dataclasses.replace(
        _RESIDUAL, fields={'model.shortcut': 'A'}
      ),
    },
    depths={
      'digits': (20, 56, 110),
      'fashion_mnist': (20,),
      'cifar10': (20, 56, 110),
      'imagenet2012': (18, 34),
    },
    paper=_ON_CIFAR
    | {
      ('imagenet2012', 'plain', 18): (27.94, _TABLE_2),
      ('imagenet2012', 'plain', 34): (28.54, _TABLE_2),
      ('imagenet2012', 'residual', 18): (27.88, _TABLE_2),
      ('imagenet2012', 'residual', 34): (25.03, _TABLE_2),
    },
    budget={'digits': '30 minutes, one seed 10'},
  ),
  'shortcuts': Experiment(
    title='Shortcut options A, B and C',
    groups={
      option: dataclasses.replace(_RESIDUAL, fields={'model.shortcut': option})
      for option in ('A', 'B', 'C')
    },
    depths={'digits': (56,), 'cifar10': (56,), 'imagenet2012': (34,)},
    paper={
      ('imagenet2012', 'A', 34): (25.03, _TABLE_3),
      ('imagenet2012', 'B', 34): (24.52, _TABLE_3),
      ('imagenet2012', 'C', 34): (24.19, _TABLE_3),
    },
    budget={'digits': '30 minutes'},
  ),
  'responses': Experiment(
    title='Standard deviation of layer responses',
    groups={'plain': _PLAIN, 'residual': _RESIDUAL},
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
    paper=_ON_CIFAR,
    budget={'digits': '30 minutes'},
    says='residual nets respond less than plain ones, deeper nets less than'
    ' shallower ones (Figure 7).',
    shows='responses',
  ),
  'bottleneck': Experiment(
    title='Basic blocks and as many bottlenecks, at nearly equal cost',
    groups={
      'basic': _RESIDUAL,
      'bottleneck': Group(
        model=lambda depth: f'bottleneck_resnet{_bottleneck_depth(depth)}'
      ),
    },
    depths={'digits': (20, 56), 'cifar10': (20, 56, 110)},
    paper={
      ('cifar10', 'basic', depth): (error, _TABLE_6)
      for depth, error in _CIFAR_ERRORS.items()
    },
    says='on ImageNet (option B, ten crops) ResNet-34 has a top-1 error of'
    ' 24.52 %, and ResNet-50, as many bottlenecks, 22.85 % (Table 3).',
    budget={'digits': '30 minutes'},
  ),
  'identity': Experiment(
    title='Residual branches that begin as zero',
    groups={
      'ordinary': dataclasses.replace(
        _RESIDUAL, fields={'model.zero_init_last_scale': False}
      ),
      'identity': dataclasses.replace(
        _RESIDUAL, fields={'model.zero_init_last_scale': True}
      ),
    },
    depths={'digits': (20, 56, 110), 'cifar10': (20, 56, 110)},
    paper={},
    budget={'digits': '30 minutes'},
    # What is asked is how it begins, at the full rate.
    fields={
      'num_epochs': 3.0,
      'log_every_steps': 1,
      'schedule.warmup_epochs': 0.0,
    },
    shows='loss',
  ),
  'preact': Experiment(
    title='v1 and pre-activation (v2)',
    groups={'v1': _RESIDUAL, 'v2': Group(model='preact_resnet{}'.format)},
    depths={'digits': (110,), 'cifar10': (110,)},
    paper={
      ('cifar10', 'v1', 110): (6.61, _V2_TABLE_2),
      ('cifar10', 'v2', 110): (6.37, _V2_TABLE_2),
    },
    budget={'digits': '60 minutes'},
  ),
  'cifar': Experiment(
    title='Residual nets of CIFAR size over depth',
    groups={'residual': _RESIDUAL},
    depths={
      'cifar10': (20, 32, 44, 56, 110, 1202),
      'digits': (20, 32, 44, 56, 110),
      'fashion_mnist': (20,),
    },
    paper=_RESIDUAL_ON_CIFAR,
    budget={'digits': '60 minutes', 'fashion_mnist': '2 hours'},
    num_seeds=1,
  ),
}


def find(experiment: str, data: str | None) -> tuple[Experiment, str]:
  """Returns an experiment and the data set it is to be made on.

  Raises:
    InputError: there is no such experiment, or not on such data.
  """
  if experiment not in EXPERIMENTS:
    raise InputError(
      f'There is no experiment {experiment!r}; there are:'
      f' {", ".join(EXPERIMENTS)}.'
    )
  chosen = EXPERIMENTS[experiment]
  data = data or next(iter(chosen.depths))
  if data not in chosen.depths:
    raise InputError(
      f'{experiment} is not declared on --data={data}; it is on:'
      f' {", ".join(chosen.depths)}.'
    )
  return chosen, data


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
