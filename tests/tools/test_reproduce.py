"""A grid of tiny runs: results, figures, continuing after a kill."""

import json
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from resnet import experiment as experiment_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.history import read_history
from resnet.tools.reproduce import __main__ as reproduce
from resnet.tools.reproduce import grids, responses, results, studies
from tests.programs import assert_refused
from tests.run.made_runs import write_run
from tests.runs import fake_config, read_metrics

GRID = ('shortcuts', '--depths=8', '--groups=B', '--seeds=0,1')
NUM_STEPS = 8


def resolve(config):
  """Resolves a run for one device, which compiles sooner than for eight."""
  return experiment_lib.resolve(config, devices=jax.devices()[:1])


def small(net, **changes):
  """Stands in for a recipe."""
  return fake_config(
    model__name=f'cifar_{net}',
    data__image_size=8,
    data__eval_resize=8,
    num_epochs=1.0,
    log_every_steps=2,
    save_every_steps=2,
    **changes,
  )


@pytest.fixture(scope='module', autouse=True)
def _small_runs_here():
  """Small recipes, and the settings of this process as before the tool."""
  handler = signal.getsignal(signal.SIGINT)
  folder = jax.config.jax_compilation_cache_dir
  with pytest.MonkeyPatch.context() as patch:
    for data in ('digits', 'fashion_mnist'):
      patch.setitem(grids.RECIPES, data, small)
    patch.setattr(reproduce, 'resolve', resolve)
    yield
  signal.signal(signal.SIGINT, handler)
  jax.config.update('jax_compilation_cache_dir', folder)


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
  """The folder of a finished grid of two runs."""
  workdir = tmp_path_factory.mktemp('reproduce') / 'grid'
  args = reproduce.parser().parse_args([*GRID, f'--workdir={workdir}'])
  reproduce.main(args)
  return workdir


def grid_of(name, data, cells, workdir=''):
  study = studies.STUDIES[name]
  return grids.Grid(str(workdir), name, study, data, cells)


@pytest.fixture
def copy(grid, tmp_path):
  """A copy of the grid to damage."""
  return pathlib.Path(shutil.copytree(grid, tmp_path / 'copy'))


def read(workdir, *, speed=False):
  """Returns results.json, by default without the speed of the runs."""
  fields = json.loads((workdir / 'results.json').read_text())
  for cell in () if speed else fields['cells'].values():
    del cell['images_per_second']
  return fields


def unpadded(table):
  return re.sub(' +', ' ', table)


def test_results_hold_every_cell(grid):
  fields = read(grid, speed=True)
  assert fields['experiment'] == 'shortcuts'
  assert fields['not_run'] == []
  cells = fields['cells']
  assert list(cells) == ['B8_seed0', 'B8_seed1']
  for name, cell in cells.items():
    lines = read_metrics(grid / 'cells' / name)
    evals = [line for line in lines if 'eval/top1' in line]
    trains = [line for line in lines if 'train/top1' in line]
    assert cell['test_error'] == pytest.approx(
      100 * (1 - evals[-1]['eval/top1'])
    )
    assert cell['test_accuracy'] == pytest.approx(100 * evals[-1]['eval/top1'])
    assert cell['curves']['test']['step'] == [line['step'] for line in evals]
    assert cell['train_error'] == pytest.approx(
      100 * (1 - trains[-1]['train/top1'])
    )
    assert cell['first_loss'] == trains[0]['train/loss']
    assert cell['config']['seed'] == cell['seed'] == int(name[-1])
    assert cell['images_per_second'] > 0
    assert cell['hardware'] and cell['commits']
  errors = [cell['test_error'] for cell in cells.values()]
  text = unpadded((grid / 'results.md').read_text())
  expected = f'{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}'
  assert f'\n| resnet8 B | none | {expected} |' in text
  assert (grid / 'figure.png').read_bytes()[:4] == b'\x89PNG'
  assert b'<svg' in (grid / 'figure.svg').read_bytes()


@pytest.mark.parametrize(('group', 'error'), [('+mixup', 50), ('+ema', 25)])
def test_the_test_error_is_that_of_moving_averages(group, error, tmp_path):
  cell = grids.Cell(group, 8, 0)
  grid = grid_of('ladder', 'fashion_mnist', [cell])
  config = grids.config_of(grid.study, grid.data, cell)
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
  result = results.describe(grid, cell, run, read_history(folder))
  assert result['test_error'] == error
  assert result['curves']['test']['error'] == [error]


def test_runs_to_come_are_listed_with_the_papers_errors(tmp_path):
  study = studies.STUDIES['degradation']
  for data, depths, nets in (
    ('digits', (8, 20), {'plain20': 'about 9.5 (CIFAR-10)', 'resnet8': 'none'}),
    ('imagenet2012', (34,), {'plain34': '28.54', 'resnet34': '25.03'}),
  ):
    cells = grids.cells(study, data, depths=depths)
    grid = grid_of('degradation', data, cells, workdir=tmp_path)
    results.write(grid, {})
    text = unpadded((tmp_path / 'results.md').read_text())
    for net, paper in nets.items():
      assert f'\n| {net} | {paper} | {"not run | " * 4}0 of 3 |' in text
    found = [grids.Cell(**cell) for cell in read(tmp_path)['not_run']]
    assert found == cells


def test_the_same_command_skips_complete_runs(grid, tool):
  files = [grid / name for name in ('results.json', 'figure.svg')]
  before = [file.read_bytes() for file in files]
  out = tool('reproduce', *GRID, f'--workdir={grid}').stdout
  assert out.count(': complete') == 2
  assert 'First step' not in out
  assert [file.read_bytes() for file in files] == before


def test_the_folder_of_another_grid_is_refused(grid, copy, tool):
  fields = read(copy)
  assert fields['epochs'] is None
  path = copy / 'results.json'
  saved = path.read_text()
  path.write_text(json.dumps({**fields, 'epochs': 20}))
  result = tool('reproduce', *GRID, f'--workdir={copy}')
  assert_refused(
    result, 'shortcuts --data=digits --epochs=20, not shortcuts --data=digits)'
  )
  path.write_text(saved)
  result = tool('reproduce', 'preact', f'--workdir={grid}')
  assert_refused(
    result, 'another grid (shortcuts --data=digits, not preact --data=digits)'
  )
  path = copy / 'cells' / 'B8_seed1' / 'config.json'
  text = path.read_text().replace('"batch_size": 64', '"batch_size": 63')
  path.write_text(text)
  result = tool('reproduce', *GRID, f'--workdir={copy}')
  assert_refused(result, 'batch_size: 63 there, 64 now')


@pytest.mark.slow
def test_a_kill_at_a_bad_moment_changes_no_result(grid, copy, tool):
  before_the_first_line = copy / 'cells' / 'B8_seed0'
  shutil.rmtree(before_the_first_line / 'checkpoints')
  (before_the_first_line / 'metrics.jsonl').write_text('')
  starts = before_the_first_line / 'starts.jsonl'
  starts.write_text(starts.read_text().splitlines(keepends=True)[0])
  before_the_last_checkpoint = copy / 'cells' / 'B8_seed1'
  shutil.rmtree(before_the_last_checkpoint / 'checkpoints' / str(NUM_STEPS))
  (before_the_last_checkpoint / 'curves.png').unlink()
  tool('reproduce', *GRID, f'--workdir={copy}')
  assert read(copy) == read(grid)
  for cell in (before_the_first_line, before_the_last_checkpoint):
    assert (cell / 'checkpoints' / str(NUM_STEPS)).is_dir()


def test_bad_cells_are_refused_before_the_first_run(tool, tmp_path):
  for study, flag, part in (
    ('degradation', '--depths=20,21', "no model 'cifar_plain21'"),
    ('preact', '--seeds=1,x', "--seeds: invalid numbers value: '1,x'"),
    ('preact', '--groups=v3', "unknown group 'v3'. There are: v1, v2"),
    ('ladder', '--data=digits', '--data=digits is not one of fashion_mnist'),
    ('shortcuts', '--epochs=5', "B and C' on digits has no short recipe"),
    ('cifar', '--epochs=0', "'0' is not an integer of 1 or more"),
    ('imagenette', '--seeds=0', '--data=folder: type --data-dir=DIR'),
    ('degredation', '--seeds=1', "invalid choice: 'degredation'"),
  ):
    workdir = f'--workdir={tmp_path}/grid'
    assert_refused(tool('reproduce', study, flag, workdir), part)
    assert not (tmp_path / 'grid').exists()


def test_responses_are_deviations_of_batch_norm_outputs(grid):
  cell = grids.Cell('B', 8, 0)
  study = studies.STUDIES['shortcuts']
  run = resolve(grids.config_of(study, 'digits', cell))
  folder = str(grid / 'cells' / cell.name)
  measured = responses.measure(run, folder)
  assert measured['mean_response'] == pytest.approx(
    np.mean(measured['responses'])
  )
  measured = measured['responses']
  assert len(measured) == 7  # All layers but the last.
  # The first, by hand, over all images of the split.
  state = Checkpoints(folder).restore(NUM_STEPS, run.abstract_state())
  state = jax.device_get(state)
  params, stats = state.params['stem_bn'], state.batch_stats['stem_bn']
  outputs = []
  for i in range(2):
    batch = run.eval_reader(i)
    y = jax.lax.conv_general_dilated(
      run.task.normalize(batch['image'][batch['mask']]),
      state.params['stem_conv']['kernel'],
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    scale = params['scale'] / np.sqrt(np.asarray(stats['var']) + 1e-5)
    outputs.append((np.asarray(y) - stats['mean']) * scale + params['bias'])
  expected = np.std(np.concatenate(outputs), dtype=np.float64)
  assert measured[0] == pytest.approx(expected, rel=1e-5)
