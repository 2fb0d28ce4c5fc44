"""A grid of tiny runs: results, figures, going on after a kill."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import fake
from resnet.errors import InputError
from resnet.experiment import resolve
from resnet.models import create_model
from resnet.reporting.history import read_history
from resnet.tools import (
  command,
  costs,
  experiments,
  grids,
  reproduce,
  responses,
  results,
)
from resnet.training.checkpoint import Checkpoints
from tests.reporting.made_runs import write_run

ROOT = pathlib.Path(__file__).parents[2]


def small(_):
  """Stands in for the recipe of digits."""
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.log_every_steps = 2
  config.save_every_steps = 2
  return config


@pytest.fixture(scope='module')
def run():
  """(*args) -> nothing; runs the tool here, with small runs."""

  def run(*args):
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(grids.RECIPES, 'digits', small)
      patch.setattr(sys, 'argv', ['reproduce', *map(str, args)])
      patch.setattr(signal, 'signal', lambda *_: None)
      # The tests of this process have a folder of compiled programs.
      patch.setattr(reproduce.jax.config, 'update', lambda *_: None)
      command.run(reproduce.main, reproduce.parser())

  return run


GRID = ('shortcuts', '--depths=8', '--groups=A,B', '--seeds=0,1')


@pytest.fixture(scope='module')
def grid(tmp_path_factory, run):
  """The folder of a finished grid of four runs."""
  workdir = tmp_path_factory.mktemp('reproduce') / 'grid'
  run(*GRID, f'--workdir={workdir}')
  return workdir


def read(workdir, *, timing=False):
  """Returns results.json, by default without wall times."""
  fields = json.loads((workdir / 'results.json').read_text())
  if not timing:
    for cell in fields['cells'].values():
      del cell['timing']
  return fields


def test_results_hold_every_cell(grid):
  fields = read(grid, timing=True)
  assert fields['experiment'] == 'shortcuts'
  assert fields['not_run'] == []
  assert list(fields['cells']) == [
    f'{group}8_seed{seed}' for group in 'AB' for seed in (0, 1)
  ]
  for name, cell in fields['cells'].items():
    lines = (grid / 'cells' / name / 'metrics.jsonl').read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    evals = [line for line in lines if 'eval/top1' in line]
    assert cell['test_error'] == pytest.approx(
      100 * (1 - evals[-1]['eval/top1'])
    )
    assert cell['curves']['test']['step'] == [line['step'] for line in evals]
    trains = [line for line in lines if 'train/top1' in line]
    assert cell['train_error'] == pytest.approx(
      100 * (1 - trains[-1]['train/top1'])
    )
    assert cell['first_loss'] == trains[0]['train/loss']
    assert cell['config']['seed'] == cell['seed'] == int(name[-1])
    assert cell['timing']['train_seconds'] > 0
    assert cell['hardware'] and cell['commits']
    assert cell['timing']['wall_seconds'] > 0
  a, b = (fields['cells'][f'{x}8_seed0'] for x in 'AB')
  assert a['label'] == 'resnet8 A'
  # Two projections and their batch norms.
  added = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
  assert b['parameters'] - a['parameters'] == added


def test_sizes_are_those_of_the_trained_nets():
  cell = grids.Cell('B', 8, 0)
  experiment, data = experiments.find('shortcuts', None)
  with pytest.MonkeyPatch.context() as patch:
    # Grey images.
    config = small(None)
    config.data.name = 'digits'
    patch.setitem(grids.RECIPES, 'digits', lambda _: config)
    run = resolve(grids.config_of(experiment, data, cell))
  assert run.image_shape[-1] == 1
  params = run.abstract_state().params
  size = results._size_of(run)
  assert size['parameters'] == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(('group', 'error'), [('+mixup', 50), ('+ema', 25)])
def test_a_net_with_moving_averages_is_tested_with_these(
  group, error, tmp_path
):
  cell = grids.Cell(group, 8, 0)
  experiment, data = experiments.find('ladder', None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(grids.RECIPES, data, small)
    config = grids.config_of(experiment, data, cell)
  config.data.train_split = 'train'
  run = resolve(config)
  step = run.length.num_steps
  line = {'step': step, 'epoch': 10.0, 'time': 1.0}
  lines = [
    {**line, 'train/loss': 1.0, 'train/top1': 0.5},
    {**line, 'eval/top1': 0.5, 'eval/loss': 1.0}
    | {'eval_ema/top1': 0.75, 'eval_ema/loss': 1.0},
  ]
  folder = write_run(tmp_path / 'run', lines, step, **run.config)
  result = results.describe(experiment, cell, run, read_history(folder))
  assert result['test_error'] == error
  assert result['curves']['test']['error'] == [error]


def test_a_ladder_has_a_table_of_gains(tmp_path):
  experiment, data = experiments.find('ladder', None)
  cells = grids.cells(experiment, data=data, seeds=[0, 1])
  grid = {'experiment': 'ladder', 'data': data}
  timing = {'wall_seconds': 2.0, 'images_per_second': 50.0}
  done = {
    cell: {
      'group': cell.group,
      'test_error': 9.0
      - 0.1 * cell.seed
      - list(experiment.groups).index(group),
      'train_error': 1.0,
      'first_loss': 2.0,
      'parameters': 3,
      'multiply_adds': 4,
      'hardware': ['a CPU'],
      'commits': ['abc'],
      'timing': timing,
    }
    for cell in cells
    for group in [cell.group]
  }
  results.write(str(tmp_path), experiment, grid, cells, done)
  text = (tmp_path / 'results.md').read_text()
  assert '| resnet20 +cosine | none | 6.95 ± 0.07 | 1.00 ± 0.00 |' in text
  gained = '| +cosine | +1.00 | better | +2.00 | better |'
  assert f'{gained} not measured | not measured |' in text
  costs_ = {
    group: {name: spread(half) for name in ('images_per_second', 'share')}
    for group, half in zip(experiment.groups, (1, 0.9, 0.8), strict=False)
  }
  results.write(str(tmp_path), experiment, grid, cells, done, costs_)
  text = (tmp_path / 'results.md').read_text()
  assert f'{gained} 1 | 0.80 (0.80 to 0.80) |' in text
  assert json.loads((tmp_path / 'results.json').read_text())['costs'] == costs_


def spread(value):
  return dict.fromkeys(('median', 'low', 'high'), value)


def test_the_costs_of_groups_are_measured_once(tmp_path, monkeypatch):
  configs = {'plain': small(None), 'mixed': small(None)}
  for config in configs.values():
    config.model.name = 'cifar_resnet8'
  configs['mixed'].augment.mixup_alpha = 0.2
  measured = functools.partial(costs.measure, rounds=2)
  monkeypatch.setattr(costs, 'measure', measured)
  found = costs.read_or_measure(str(tmp_path), configs)
  assert list(found) == ['plain', 'mixed']
  assert found['plain']['share'] == spread(1.0)
  rates = [found[group]['images_per_second'] for group in found]
  assert all(0 < rate['low'] <= rate['high'] for rate in rates)
  monkeypatch.setattr(costs, 'measure', None)
  assert costs.read_or_measure(str(tmp_path), configs) == found


def test_the_command_is_that_of_the_cells():
  experiment, data = experiments.find('degradation', None)
  grid = {'experiment': 'degradation', 'data': data}
  tool = 'python -m resnet.tools.reproduce degradation --data=digits'
  for fields, flags in (
    ({}, ''),
    ({'seeds': [0]}, ' --seeds=0'),
    (
      {'groups': ['plain'], 'depths': [20, 56]},
      ' --groups=plain --depths=20,56',
    ),
  ):
    cells = grids.cells(experiment, data=data, **fields)
    text = results.command_of(experiment, grid, cells)
    assert text == f'{tool}{flags} --workdir=DIR'


def test_the_table_has_mean_and_deviation(grid):
  results_of = read(grid)['cells']
  errors = [results_of[f'B8_seed{seed}']['test_error'] for seed in (0, 1)]
  text = (grid / 'results.md').read_text()
  (row,) = [x for x in text.splitlines() if x.startswith('| resnet8 B')]
  expected = f'{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}'
  assert row.startswith(f'| resnet8 B | none | {expected} |')
  assert '| imagenet2012 | B 34 | 24.52 | He et al. 2016, Table 3' in text


@pytest.mark.parametrize(
  ('data', 'group', 'depth', 'text'),
  [
    ('digits', 'residual', 20, '8.75 (CIFAR-10)'),
    ('cifar10', 'residual', 20, '8.75'),
    ('digits', 'plain', 20, 'about 9.5 (CIFAR-10)'),
    ('cifar10', 'plain', 110, 'over 60'),
    ('imagenet2012', 'plain', 34, '28.54 (ten crops)'),
    ('digits', 'residual', 8, 'none'),
  ],
)
def test_the_paper_is_beside_ours(data, group, depth, text):
  experiment = experiments.EXPERIMENTS['degradation']
  assert results._paper(experiment, data, group, depth) == text


def test_what_was_not_run_is_said(tmp_path):
  experiment, data = experiments.find('degradation', None)
  cells = grids.cells(experiment, data=data, depths=[20])
  grid = {'experiment': 'degradation', 'data': data}
  results.write(str(tmp_path), experiment, grid, cells, {})
  text = (tmp_path / 'results.md').read_text()
  assert (
    '| plain20 | about 9.5 (CIFAR-10) | not run | not run | not run | not run |'
    ' not run | 0 of 3 |' in text
  )
  assert len(read(tmp_path)['not_run']) == 6


def test_figures_are_there(grid):
  assert (grid / 'figure.png').read_bytes()[:4] == b'\x89PNG'
  assert b'<svg' in (grid / 'figure.svg').read_bytes()


def test_the_same_command_skips_what_is_complete(grid, run, capsys):
  before = {
    name: (grid / name).read_bytes() for name in ('results.json', 'figure.svg')
  }
  capsys.readouterr()
  run(*GRID, f'--workdir={grid}')
  out = capsys.readouterr().out
  assert out.count(': complete') == 4
  assert 'First step' not in out
  for name, content in before.items():
    assert (grid / name).read_bytes() == content


def test_another_grid_in_the_folder_is_refused(grid, run, capsys, tmp_path):
  for workdir, message in (
    (grid, 'another grid (shortcuts on digits, not preact on digits)'),
    (grid / 'cells', 'is not empty and holds no grid'),
  ):
    with pytest.raises(SystemExit) as exit_:
      run('preact', f'--workdir={workdir}')
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
  (tmp_path / 'grid.json').write_text('{"experiment": "shortcuts"}')
  with pytest.raises(SystemExit):
    run(*GRID, f'--workdir={tmp_path}')
  assert 'is damaged' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['', '0,', '1,x'])
def test_seeds_that_are_no_numbers_are_refused(run, capsys, tmp_path, text):
  with pytest.raises(SystemExit) as exit_:
    run('preact', f'--seeds={text}', f'--workdir={tmp_path}')
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'--seeds: {text!r} are no whole numbers with commas' in line


@pytest.fixture
def copy(grid, tmp_path):
  """A copy of the grid to damage."""
  return pathlib.Path(shutil.copytree(grid, tmp_path / 'copy'))


def _killed_before_the_first_line(cell):
  shutil.rmtree(cell / 'checkpoints')
  (cell / 'metrics.jsonl').write_text('')
  starts = (cell / 'starts.jsonl').read_text().splitlines(keepends=True)
  (cell / 'starts.jsonl').write_text(starts[0])


def _killed_before_the_last_checkpoint(cell):
  shutil.rmtree(cell / 'checkpoints' / '16')


@pytest.mark.parametrize(
  'damage', [_killed_before_the_first_line, _killed_before_the_last_checkpoint]
)
def test_a_kill_at_a_bad_moment_is_survived(grid, copy, run, damage):
  damage(copy / 'cells' / 'B8_seed1')
  (copy / 'cells' / 'B8_seed1' / 'curves.png').unlink()
  run(*GRID, f'--workdir={copy}')
  assert read(copy) == read(grid)
  assert (copy / 'cells' / 'B8_seed1' / 'checkpoints' / '16').is_dir()


def test_a_part_of_the_grid_file_is_no_grid(run, tmp_path, monkeypatch):
  (tmp_path / '.grid.json.abc').write_text('{')
  monkeypatch.setattr(reproduce.run_lib, 'train', lambda *_, **__: sys.exit(99))
  with pytest.raises(SystemExit) as exit_:
    run(*GRID, f'--workdir={tmp_path}')
  assert exit_.value.code == 99


def test_cells_of_another_recipe_are_refused(copy, run, capsys):
  path = copy / 'cells' / 'A8_seed1' / 'config.json'
  path.write_text(
    path.read_text().replace('"batch_size": 64', '"batch_size": 63')
  )
  with pytest.raises(SystemExit) as exit_:
    run(*GRID, f'--workdir={copy}')
  assert exit_.value.code == 2
  assert 'batch_size: 63 there, 64 now' in capsys.readouterr().err


def test_wrong_cells_are_found_before_the_first_run(run, capsys, tmp_path):
  with pytest.raises(SystemExit) as exit_:
    run('degradation', '--depths=20,21', f'--workdir={tmp_path / "grid"}')
  assert exit_.value.code == 2
  assert "no model 'cifar_plain21'" in capsys.readouterr().err
  assert not (tmp_path / 'grid').exists()


def test_responses_are_deviations_of_batch_norms(grid):
  cell = grids.Cell('A', 8, 0)
  experiment, data = experiments.find('shortcuts', None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(grids.RECIPES, 'digits', small)
    run = resolve(grids.config_of(experiment, data, cell))
  measured = responses.measure(run, str(grid / 'cells' / cell.name))
  assert measured['mean_response'] == pytest.approx(
    np.mean(measured['responses'])
  )
  measured = measured['responses']
  assert len(measured) == 7  # All layers but the last.
  # The first, by hand, over all images of the split.
  state = run.abstract_state()
  checkpoints = Checkpoints(str(grid / 'cells' / cell.name))
  state = checkpoints.restore(run.length.num_steps, state)
  outputs = []
  for i in range(2):
    batch = run.eval_reader(i)
    images = run.task.normalize(batch['image'][batch['mask']])
    features = create_model('cifar_resnet8').apply(
      state.variables,
      images,
      train=False,
      capture_intermediates=True,
      mutable='intermediates',
    )[1]['intermediates']
    outputs.append(np.asarray(features['stem_bn']['__call__'][0]))
  expected = np.std(np.concatenate(outputs), dtype=np.float64)
  assert measured[0] == pytest.approx(expected, rel=1e-5)


SCRIPT = """
import sys
from tests.tools.test_reproduce import small
from resnet.tools import command, grids, reproduce
grids.RECIPES['digits'] = small
command.run(reproduce.main, reproduce.parser())
"""


@pytest.mark.slow
def test_a_killed_grid_goes_on_to_the_same_results(grid, tmp_path, data_dir):
  workdir = tmp_path / 'grid'
  args = [sys.executable, '-c', SCRIPT, *GRID, f'--workdir={workdir}']
  environment = {
    **os.environ,
    'TFDS_DATA_DIR': data_dir,
    'PYTHONPATH': str(ROOT),
  }
  # In the second run, between its first checkpoint and its end.
  second = workdir / 'cells' / 'B8_seed0'
  with subprocess.Popen(
    args, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
  ) as process:
    deadline = time.monotonic() + 300
    while not (second / 'checkpoints' / '2').exists():
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
  assert not (workdir / 'cells' / 'B8_seed1').exists()
  assert read(workdir)['not_run'], 'killed too late'
  subprocess.run(args, cwd=ROOT, env=environment, check=True, timeout=300)
  assert read(workdir) == read(grid)


def test_a_ladder_is_of_one_depth(tmp_path):
  """Its table has a row a group, whose seeds alone are averaged."""
  grid = {'experiment': 'ladder', 'data': 'fashion_mnist'}
  small, large = (grids.Cell('baseline', depth, 0) for depth in (8, 20))
  message = 'ladder is of one depth, not 8 and 20'
  workdir = tmp_path / 'ladder'
  with pytest.raises(InputError, match=message):
    reproduce._open_grid(str(workdir), grid, [small, large], True)
  assert not workdir.exists()
  reproduce._open_grid(str(workdir), grid, [large], True)
  text = (workdir / 'grid.json').read_text()
  with pytest.raises(InputError, match=message):
    reproduce._open_grid(str(workdir), grid, [small], True)
  assert (workdir / 'grid.json').read_text() == text
  reproduce._open_grid(str(workdir), grid, [small], False)
