"""The papers' experiments: what a grid is made of."""

import itertools
import re

import pytest

from resnet.errors import InputError
from resnet.models import arithmetic, list_models
from resnet.tools import experiments, grids

ALL = [
  (name, data)
  for name, experiment in experiments.EXPERIMENTS.items()
  for data in experiment.depths
]


def all_cells(name, data):
  experiment, _ = experiments.find(name, data)
  return experiment, grids.cells(experiment, data=data)


# Between nets of one depth.
COMPARED = {
  'degradation': {'model.name', 'model.shortcut'},
  'shortcuts': {'model.shortcut'},
  'identity': {'model.zero_init_last_scale'},
  'ladder': {
    'augment.mixup_alpha',
    'augment.operations',
    'ema_decay',
    'loss.label_smoothing',
    'schedule.decay_epochs',
    'schedule.name',
  },
}


@pytest.mark.parametrize(('name', 'data'), ALL)
def test_cells_differ_in_what_is_compared_only(name, data):
  """In the network, the shortcut, the first scales and the seed."""
  experiment, cells = all_cells(name, data)
  configs = [
    grids.config_of(experiment, data, cell).to_dict() for cell in cells
  ]
  compared = COMPARED.get(name, {'model.name'})
  # The paper warms up its nets of 110 layers on CIFAR-10; plain ones too.
  per_depth = {'schedule.warmup_epochs'} if data == 'cifar10' else set()
  for cell, config in zip(cells, configs, strict=True):
    flat, first = _flat(config), _flat(configs[0])
    differ = {field for field in flat if flat[field] != first[field]}
    assert differ <= {'seed', 'model.name'} | compared | per_depth
    (twin, *_) = [c for c in cells if c.depth == cell.depth]
    flat_twin = _flat(configs[cells.index(twin)])
    differ = {field for field in flat if flat[field] != flat_twin[field]}
    assert differ <= {'seed'} | compared


def test_each_rung_of_the_ladder_adds_one_ingredient():
  experiment, cells = all_cells('ladder', 'fashion_mnist')
  assert [c.name for c in cells[:6]] == [
    'baseline20_seed0',
    '+smoothing20_seed0',
    '+cosine20_seed0',
    '+erasing20_seed0',
    '+mixup20_seed0',
    '+ema20_seed0',
  ]
  flat = [
    _flat(grids.config_of(experiment, 'fashion_mnist', cell).to_dict())
    for cell in cells[:6]
  ]
  added = [
    {field: new[field] for field in new if new[field] != old[field]}
    for old, new in itertools.pairwise(flat)
  ]
  assert added == [
    {'loss.label_smoothing': 0.1},
    {'schedule.name': 'cosine', 'schedule.decay_epochs': ()},
    {'augment.operations': ('erasing',)},
    {'augment.mixup_alpha': 0.2},
    {'ema_decay': 0.99},
  ]


def _flat(fields, prefix=''):
  result = {}
  for key, value in fields.items():
    if isinstance(value, dict):
      result |= _flat(value, f'{prefix}{key}.')
    else:
      result[f'{prefix}{key}'] = value
  return result


@pytest.mark.parametrize(('name', 'data'), ALL)
def test_cells_are_networks_with_labels_of_their_own(name, data):
  experiment, cells = all_cells(name, data)
  labels = {}
  for cell in cells:
    model = grids.config_of(experiment, data, cell).model.name
    assert model in list_models()
    labels.setdefault(grids.label(experiment, cell), set()).add(
      (cell.group, cell.depth)
    )
  assert all(len(cells) == 1 for cells in labels.values())
  assert len(cells) == len({cell.name for cell in cells})


@pytest.mark.parametrize('name', experiments.EXPERIMENTS)
def test_paper_numbers_are_of_groups_and_have_sources(name):
  experiment = experiments.EXPERIMENTS[name]
  for (data, group, _), (_, source) in experiment.paper.items():
    assert group in experiment.groups
    assert data in ('cifar10', 'imagenet2012')
    assert re.search(r'Table \d|Figure \d', source)


def test_paper_numbers_are_those_of_the_papers():
  numbers = {
    (data, group, depth): error
    for experiment in experiments.EXPERIMENTS.values()
    for (data, group, depth), (error, _) in experiment.paper.items()
  }
  # He et al. 2016, Table 6, Figure 6, Tables 2 and 3; "Identity mappings".
  cifar = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
  assert numbers == {
    **{('cifar10', 'residual', depth): x for depth, x in cifar.items()},
    **{('cifar10', 'basic', depth): x for depth, x in cifar.items()},
    ('cifar10', 'plain', 20): 9.5,
    ('cifar10', 'plain', 56): 13.5,
    ('cifar10', 'plain', 110): 60,
    ('imagenet2012', 'plain', 18): 27.94,
    ('imagenet2012', 'plain', 34): 28.54,
    ('imagenet2012', 'residual', 18): 27.88,
    ('imagenet2012', 'residual', 34): 25.03,
    ('imagenet2012', 'A', 34): 25.03,
    ('imagenet2012', 'B', 34): 24.52,
    ('imagenet2012', 'C', 34): 24.19,
    ('cifar10', 'v1', 110): 6.61,
    ('cifar10', 'v2', 110): 6.37,
  }


def test_bottlenecks_have_nearly_the_cost_of_basic_blocks():
  experiment, data = experiments.find('bottleneck', None)
  costs = {}
  for cell in grids.cells(experiment, data=data, depths=[56], seeds=[0]):
    name = grids.config_of(experiment, data, cell).model.name
    network = arithmetic.trace(name, 32)
    costs[cell.group] = sum(
      c.conv_multiply_adds for c in network.costs.values()
    )
  assert 0.9 < costs['bottleneck'] / costs['basic'] < 1.1


def test_cifar_has_the_recipe_of_the_paper():
  experiment, cells = all_cells('cifar', 'cifar10')
  assert [cell.depth for cell in cells] == [20, 32, 44, 56, 110, 1202]
  for cell in cells:
    config = grids.config_of(experiment, 'cifar10', cell)
    updates = 45_000 / 128  # Of an epoch.
    assert config.data.train_split == 'train[:45000]'
    assert config.num_epochs * updates == pytest.approx(64_000)
    assert [x * updates for x in config.schedule.decay_epochs] == pytest.approx(
      [32_000, 48_000]
    )
    warmup = config.schedule.warmup_epochs * updates
    assert warmup == pytest.approx(400 if cell.depth >= 110 else 0)


def test_seeds_depths_and_groups_can_be_chosen():
  experiment, data = experiments.find('degradation', None)
  assert data == 'digits'
  assert len(grids.cells(experiment, data=data)) == 2 * 3 * 3
  cells = grids.cells(
    experiment, data=data, groups=['plain'], depths=[20], seeds=[7]
  )
  assert [cell.name for cell in cells] == ['plain20_seed7']


@pytest.mark.parametrize(
  ('name', 'data', 'message'),
  [
    (
      'degredation',
      None,
      'no experiment .*; there are: degradation, shortcuts',
    ),
    ('preact', 'mnist', 'preact is not declared on .*: digits, cifar10'),
  ],
)
def test_unknown_names_list_what_there_is(name, data, message):
  with pytest.raises(InputError, match=message):
    experiments.find(name, data)


def test_bottlenecks_are_as_many_as_basic_blocks():
  experiment, data = experiments.find('bottleneck', None)
  cells = grids.cells(experiment, data=data, depths=[21], seeds=[0])
  with pytest.raises(InputError, match=r'--depths=21: .* 6n \+ 2'):
    grids.config_of(experiment, data, cells[1])


def test_an_unknown_group_is_named():
  experiment, data = experiments.find('degradation', None)
  with pytest.raises(InputError, match=r'no group .*Did you mean: residual'):
    grids.cells(experiment, data=data, groups=['residul'])
