"""The papers' experiments: the cells of a grid, and gains between groups."""

import itertools

import pytest

from configs import cifar10, imagenette
from resnet.config import flatten
from resnet.errors import InputError
from resnet.models import cost, list_models
from resnet.tools.reproduce import grid_figures, grids, results, studies


def grid_of(name, data, cells=(), workdir='', **options):
  study = studies.STUDIES[name]
  return grids.Grid(str(workdir), name, study, data, cells, **options)


def leaderboard_result(group, depth, seed=0, accuracy=85.0):
  """Returns what the table and the figure need of a result."""
  return {
    'group': group,
    'depth': depth,
    'seed': seed,
    'test_accuracy': accuracy,
    'images_per_second': 100.0,
    'hardware': ['2 cores'],
    'commits': ['abc'],
  }


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
    for data in grids.data_sets(study)
  ],
)
def test_cells_differ_only_in_the_compared_fields(name, data):
  study, configs = fields_by_cell(name, data)
  compared = {'model.name'}.union(*study.groups.values())
  if name == 'imagenette':  # A group is a size and a number of epochs.
    compared |= {'data.image_size', 'data.eval_resize'}
    compared |= {'num_epochs', 'schedule.warmup_epochs'}
  # The paper warms up its nets of 110 layers on CIFAR-10; plain ones too.
  per_depth = {'schedule.warmup_epochs'} if 'cifar10' in data else set()
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


def test_copies_of_cifar_have_its_recipe_and_depths():
  for name in ('cifar', 'degradation', 'shortcuts'):
    _, originals = fields_by_cell(name, 'cifar10')
    _, copies = fields_by_cell(name, 'cifar10_jpeg')
    assert list(copies) == list(originals)
    for cell, fields in copies.items():
      assert different(fields, originals[cell]) == {'data.name'}
      assert fields['data.name'] == 'cifar10_jpeg'


def test_imagenette_has_the_recipes_of_its_config():
  assert set(studies.LEADERBOARD) == set(imagenette.RECIPES)
  study = studies.STUDIES['imagenette']
  for data in ('folder', 'imagenette_raw'):
    for cell in grids.cells(study, data, depths=[18, 50], seeds=[3]):
      fields = flatten(grids.config_of(study, data, cell, data_dir='DIR'))
      recipe = imagenette.get_config(f'{cell.group},resnet{cell.depth}d')
      expected = flatten(recipe) | {'seed': 3, 'data.data_dir': 'DIR'}
      assert fields == expected | {'data.name': data}
  assert grids.Cell('128x5', 18, 0).name == '128x5_18_seed0'


def test_epochs_select_the_short_recipe():
  study, cell = studies.STUDIES['cifar'], grids.Cell('residual', 20, 0)
  config = grids.config_of(study, 'cifar10', cell, epochs=20)
  assert flatten(config) == flatten(cifar10.get_config('resnet20,20'))
  # 'identity' has a number of epochs of its own.
  for name, data in (('cifar', 'digits'), ('identity', 'cifar10')):
    study = studies.STUDIES[name]
    cell = grids.cells(study, data)[0]
    with pytest.raises(InputError, match=f'--epochs=20: .* on {data} has no'):
      grids.config_of(study, data, cell, epochs=20)


def test_a_table_of_copies_names_them(tmp_path):
  cells = [grids.Cell('residual', 20, 0)]
  grid = grid_of('cifar', 'cifar10_jpeg', cells, tmp_path, epochs=20)
  text = ' '.join(results.write(grid, {}).split())
  title = 'Residual nets of CIFAR size over depth: JPEG copies of CIFAR-10'
  assert text.startswith(f'# {title}, 20 epochs ')
  command = 'cifar --data=cifar10_jpeg --data-dir=DIR --epochs=20 --depths=20'
  assert f'reproduce {command} --workdir=WORKDIR' in text
  assert '| test error on JPEG copies of CIFAR-10, % |' in text
  assert '| resnet20 | 8.75 (CIFAR-10) | not run |' in text


def test_imagenette_is_shown_beside_the_leaderboard(tmp_path):
  cells = [grids.Cell('128x5', 18, seed) for seed in (0, 1, 2)]
  cells.append(grids.Cell('192x20', 18, 0))
  done = {
    cell: leaderboard_result('128x5', 18, cell.seed, 84.0 + cell.seed)
    for cell in cells[:2]
  }
  grid = grid_of('imagenette', 'imagenette_raw', cells, tmp_path)
  text = ' '.join(results.write(grid, done).split())
  assert "| fast.ai's top-1 accuracy, % | top-1 accuracy on Imagenette," in text
  assert '| resnet18d 128x5 | 85.77 | 84.50 ± 0.71 | 100 ± 0 | 2 of 3 |' in text
  assert '| resnet18d 192x20 | 92.50 | not run | not run | 0 of 1 |' in text
  assert 'not of the same networks' in text
  assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'


def test_the_leaderboard_has_a_panel_for_each_size():
  grid = grid_of('imagenette', 'folder')
  (ax,) = grid_figures.draw(grid, [leaderboard_result('128x5', 18)]).axes
  published, point = ax.lines[:2]
  assert published.get_xydata().tolist() == [
    [5, 85.77],
    [20, 91.57],
    [80, 93.55],
  ]
  assert point.get_xydata().tolist() == [[5, 85]]
  made = [
    leaderboard_result(group, depth, seed, 85 + seed)
    for group in ('128x20', '192x20')
    for depth in (18, 50)
    for seed in (0, 2)
  ]
  for ax, size in zip(
    grid_figures.draw(grid, made).axes, (128, 192), strict=True
  ):
    assert ax.get_title() == f'{size} pixels'
    shown, _ = ax.get_legend_handles_labels()
    for bars in shown[1:]:
      ((low, high),) = bars.lines[2][0].get_segments()
      assert [low[1], high[1]] == pytest.approx([86 - 2**0.5, 86 + 2**0.5])


def error_result(group, depth, seed):
  curve = {'step': [1, 2], 'error': [90.0, 2.0], 'loss': [2.0, 0.1]}
  cell = {'group': group, 'depth': depth, 'seed': seed}
  curves = {'train': curve, 'test': curve}
  return {**cell, 'label': group, 'test_error': 2.0, 'curves': curves}


def test_an_unfinished_grid_has_panels_of_its_runs_and_the_whole_axis():
  study = studies.STUDIES['degradation']
  grid = grid_of('degradation', 'digits', grids.cells(study, 'digits'))
  made = [error_result('plain', 20, 0)]
  figure = grid_figures.draw(grid, made)
  (ax,) = figure.axes
  assert ax.get_title() == '20 layers' and ax.get_ylim() == (0, 100)
  assert figure.get_supxlabel() == 'Training is thin; test is bold'
  made += [error_result('plain', 20, 1), error_result('residual', 56, 0)]
  figure = grid_figures.draw(grid, made)
  assert [ax.get_title() for ax in figure.axes] == ['plain', 'residual']
  assert figure.get_supxlabel().startswith('Mean over the seeds; the band is')
  made = [error_result(c.group, c.depth, c.seed) for c in grid.cells]
  for ax in grid_figures.draw(grid, made).axes:
    assert ax.get_ylim() == (0, 20)  # As in the paper.


def test_a_command_names_what_differs_from_the_default():
  study = studies.STUDIES['degradation']
  for chosen, flags in (
    ({}, ''),
    ({'seeds': [0, 1, 2], 'depths': [20, 56]}, ' --depths=20,56'),
    (
      {'groups': ['residual'], 'depths': [20], 'seeds': [7]},
      ' --groups=residual --depths=20 --seeds=7',
    ),
  ):
    cells = grids.cells(study, 'digits', **chosen)
    grid = grid_of('degradation', 'digits', cells)
    assert grid.arguments == f'degradation --data=digits{flags}'


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
  for ax in grid_figures.draw(grid_of('ladder', 'fashion_mnist'), cells).axes:
    (line,) = ax.lines
    assert line.get_ydata().tolist() == pytest.approx([8.95, 8.85, 7.95])
