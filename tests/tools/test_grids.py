"""The papers' experiments: the cells of a grid, and gains between groups."""

import itertools

import pytest

from resnet.config import flatten
from resnet.models import cost, list_models
from resnet.tools.reproduce import grid_figures, grids, results, studies


def fields_by_cell(name, data):
  """Returns the study, and the flat config of each cell."""
  study = studies.STUDIES[name]
  return study, {
    cell: flatten(grids.config_of(study, data, cell))
    for cell in grids.cells(study, data)
  }


def different(fields, others):
  return {name for name in fields if fields[name] != others[name]}


@pytest.mark.parametrize(
  ('name', 'data'),
  [
    (name, data)
    for name, study in studies.STUDIES.items()
    for data in study.depths
  ],
)
def test_cells_differ_only_in_the_compared_fields(name, data):
  study, configs = fields_by_cell(name, data)
  compared = {'model.name'}.union(*study.groups.values())
  # The paper warms up its nets of 110 layers on CIFAR-10; plain ones too.
  per_depth = {'schedule.warmup_epochs'} if data == 'cifar10' else set()
  first = next(iter(configs.values()))
  nets_by_label = {}
  for cell, fields in configs.items():
    assert different(fields, first) <= {'seed'} | compared | per_depth
    twin = next(c for c in configs if c.depth == cell.depth)
    assert different(fields, configs[twin]) <= {'seed'} | compared
    assert fields['model.name'] in list_models()
    label = grids.label(study, cell.group, cell.depth)
    nets_by_label.setdefault(label, set()).add((cell.group, cell.depth))
  assert all(len(nets) == 1 for nets in nets_by_label.values())
  assert len({cell.name for cell in configs}) == len(configs)


def test_each_rung_of_the_ladder_adds_one_ingredient():
  _, configs = fields_by_cell('ladder', 'fashion_mnist')
  rungs = list(configs.items())[:6]
  assert [cell.group for cell, _ in rungs] == [
    *('baseline', '+smoothing', '+cosine', '+erasing', '+mixup', '+ema')
  ]
  assert rungs[1][0].name == '+smoothing20_seed0'
  added = [
    {name: new[name] for name in different(new, old)}
    for (_, old), (_, new) in itertools.pairwise(rungs)
  ]
  assert added == [
    {'loss.label_smoothing': 0.1},
    {'schedule.name': 'cosine', 'schedule.decay_epochs': []},
    {'augment.operations': ['erasing']},
    {'augment.mixup_alpha': 0.2},
    {'ema_decay': 0.99},
  ]


def test_bottlenecks_have_nearly_the_cost_of_basic_blocks():
  study, data = studies.STUDIES['bottleneck'], 'digits'
  costs = {}
  for cell in grids.cells(study, data, depths=[20], seeds=[0]):
    name = grids.config_of(study, data, cell).model.name
    network = cost.trace(name, 32)
    costs[cell.group] = network.total.conv_multiply_adds
  assert 0.85 < costs['bottleneck'] / costs['basic'] < 1.15


def test_cifar_has_the_recipe_of_the_paper():
  _, configs = fields_by_cell('cifar', 'cifar10')
  assert [cell.depth for cell in configs] == [20, 32, 44, 56, 110, 1202]
  for cell, fields in configs.items():
    updates = 45_000 / 128  # Of an epoch.
    assert fields['data.train_split'] == 'train[:45000]'
    assert fields['num_epochs'] * updates == pytest.approx(64_000)
    decays = [x * updates for x in fields['schedule.decay_epochs']]
    assert decays == pytest.approx([32_000, 48_000])
    warmup = fields['schedule.warmup_epochs'] * updates
    assert warmup == pytest.approx(400 if cell.depth >= 110 else 0)


def test_seeds_depths_and_groups_can_be_chosen():
  study, data = studies.STUDIES['degradation'], 'digits'
  assert len(grids.cells(study, data)) == 2 * 3 * 3
  cells = grids.cells(
    study, data=data, groups=['plain'], depths=[20], seeds=[7]
  )
  assert [cell.name for cell in cells] == ['plain20_seed7']


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
def test_a_gain_is_claimed_only_beyond_both_spreads(before, after, says):
  assert results.verdict(before, after) == says


def test_gains_are_against_the_row_before_of_the_same_depth():
  cells = [
    {
      'group': group,
      'depth': depth,
      'label': f'resnet{depth} {group}',
      'test_error': error - 0.1 * seed,
      'config': {'data.name': 'fashion_mnist'},
    }
    for group, error in (('baseline', 9.0), ('+a', 8.9), ('+b', 8.0))
    for depth in (20, 56)
    for seed in range(2)
  ]
  _, *rows = results.gain_rows(cells)
  assert [row[0] for row in rows] == [
    *('resnet20 baseline', 'resnet20 +a', 'resnet20 +b'),
    *('resnet56 baseline', 'resnet56 +a', 'resnet56 +b'),
  ]
  for of_one_depth in (rows[:3], rows[3:]):
    assert [row[1:] for row in of_one_depth] == [
      ['', ''],
      ['+0.10', 'within the spread'],
      ['+0.90', 'better'],
    ]
  study = studies.STUDIES['ladder']
  for ax in grid_figures.draw(study, cells).axes:
    (line,) = ax.lines
    assert line.get_ydata().tolist() == pytest.approx([8.95, 8.85, 7.95])
