"""The benchmark tool: figures that add up, and rivals of the same network."""

import functools
import importlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import checkpoints, compare, flax_step, loop
from configs import imagenette
from resnet import experiment
from resnet.errors import InputError
from resnet.tools.benchmark import programs, step, timing
from resnet.training.step import jit_steps
from tests.networks import make_variables
from tests.programs import SMALL, assert_refused
from tests.runs import fake_config


@pytest.fixture(autouse=True)
def _keep_cache():
  """Some subjects switch JAX's cache off."""
  yield
  jax.config.update('jax_enable_compilation_cache', True)


@pytest.fixture
def measure(tool, tmp_path, monkeypatch):
  """(subject, *args) -> figures, and what was printed."""
  monkeypatch.setitem(programs.SIZES, 'cpu', (64, 2**14))
  monkeypatch.setattr(step, 'ROUND_SECONDS', 0.01)

  def measure(subject, *args):
    path = tmp_path / f'{subject}.json'
    result = tool('benchmark', subject, f'--json={path}', *SMALL, *args)
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text()), result.stdout

  return measure


def test_input_figures_cover_stages_and_rates(measure):
  paths = [
    'config',
    'data.crop=random_resized data.num_threads=1',
    'data.augment_on=device',
  ]
  also = [f'--also={fields}' for fields in paths[1:]]
  found, _ = measure('input', '--rounds=2', '--batches=2', *also)
  assert list(found['images_per_second']) == paths
  for name in paths:
    assert len(found['images_per_second'][name]) == 2
    stages = found['stages_us'][name]
    assert list(stages) == [
      *('read', 'decode', 'crop and resize', 'batch', 'transfer')
    ]
    assert all(value > 0 for value in stages.values())
  assert list(found['ratios']) == paths and found['ratios']['config'] == 1.0
  # Nine batches may wait, and one is in the loop's hands.
  assert found['read_ahead_bytes'] % (64 * 8 * 8 * 3) == 0


def test_figures_of_step_and_eval_add_up(measure, tmp_path):
  brief = (
    '--rounds=3',
    *('--config.data.image_size=16', '--config.data.eval_resize=16'),
  )
  path = tmp_path / 'compared.json'
  args = ['step', *SMALL, *brief, '--against=flax', f'--json={path}']
  args.append(f'--profile={tmp_path}/trace')
  compare.main(compare.parser().parse_args(args))
  found = json.loads(path.read_text())
  ms, rate = found['ms'], found['images_per_second']
  assert ms['low'] <= ms['median'] <= ms['high']
  assert rate == pytest.approx(64 / ms['median'] * 1e3)
  share, ceiling = found['share_of_ceiling'], found['ceilings']
  assert share['arithmetic'] == pytest.approx(
    found['flops'] / (ms['median'] / 1e3) / ceiling['flops_per_second']
  )
  assert share['memory'] == pytest.approx(
    found['accessed_bytes'] / (ms['median'] / 1e3) / ceiling['bytes_per_second']
  )
  other = found['against']['flax']
  assert other['ratio']['low'] <= other['ratio']['high']
  # Both do the arithmetic of the same network.
  assert found['flops'] == pytest.approx(other['flops'], rel=0.1)
  assert list((tmp_path / 'trace').rglob('*.xplane.pb'))
  # An evaluation has a third of the arithmetic.
  evaluation, _ = measure('eval', *brief, '--also=model.shortcut=B')
  assert evaluation['batch_size'] == 64
  assert evaluation['flops'] == pytest.approx(found['flops'] / 3, rel=0.2)
  # Projections cost more than option A.
  projections = evaluation['against']['model.shortcut=B']
  assert projections['flops'] > 1.01 * evaluation['flops']


@pytest.mark.slow
def test_scripts_measure_the_loop_and_saves(tmp_path):
  def measure(script, *args):
    path = f'{tmp_path}/figures.json'
    script.main(script.parser().parse_args([*SMALL, *args, f'--json={path}']))
    return json.loads(pathlib.Path(path).read_text())

  found = measure(loop, '--rounds=1')
  rates = found['images_per_second']
  assert found['ratio']['median'] == pytest.approx(
    rates['loop']['median'] / rates['step']['median']
  )
  cached = ('--config.data.augment_on=device', '--config.data.cache=device')
  found = measure(loop, '--rounds=1', *cached, '--config.steps_per_call=2')
  assert 0 <= found['data_wait']['median'] <= 1
  assert found['cpu_ms_per_batch'] > 0
  found = measure(checkpoints, '--saves=3')
  # Parameters and momentum.
  assert found['state_bytes'] == pytest.approx(2 * 4 * 75_290, rel=0.02)
  assert found['stall_seconds']['median'] <= found['save_seconds']['median']


def test_three_updates_in_flax_equal_ours():
  """Parameters, statistics and loss."""
  config = fake_config(data__image_size=8, data__eval_resize=8, batch_size=16)
  run = experiment.resolve(config, devices=jax.devices()[:1])
  steps = jit_steps(run.task, run.sharding)
  batch = programs.batch_on_device(run, 'step')
  theirs = flax_step.jit(run, 'step')
  state = run.create_state()
  carry = jax.tree.map(
    jnp.copy, (state.params, state.batch_stats, state.opt_state)
  )
  for _ in range(3):
    state, _ = steps.train(state, batch)
    carry, metrics = theirs(carry, batch)
  for a, b in zip(
    jax.tree.leaves((state.params, state.batch_stats)),
    jax.tree.leaves(carry[:2]),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
  assert float(metrics['loss']) > 0


def test_bottlenecks_in_flax_equal_ours():
  model, variables = make_variables(
    'resnet50', size=32, num_classes=10, stage_sizes=(1, 1)
  )
  network = flax_step.create_network(model)
  images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
  ours, theirs = (
    jax.jit(functools.partial(net.apply, train=False))(variables, images)
    for net in (model, network)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_measurements_take_turns_and_are_compared_by_round():
  order = []
  measured = {
    name: functools.partial(lambda name: order.append(name) or 1.0, name)
    for name in 'ab'
  }
  found = timing.in_turn(measured, 3)
  assert order == list('abbaab')
  assert found == {'a': [1.0] * 3, 'b': [1.0] * 3}
  spread = timing.spread([4.0, 1.0, 2.0, 3.0, 5.0])
  assert spread == {'median': 3.0, 'low': 2.0, 'high': 4.0}
  assert timing.spread([2.0]) == dict.fromkeys(spread, 2.0)
  assert timing.ratio([2.0, 9.0], [1.0, 3.0])['median'] == 2.5


@pytest.mark.slow
def test_torchvision_is_timed():
  pytest.importorskip('torchvision')
  run = experiment.resolve(fake_config(), devices=jax.devices()[:1])
  for subject in ('step', 'eval'):
    with compare.torch(run, subject, name='torch-eager') as program:
      assert program.seconds(2) > 0


@pytest.mark.parametrize(
  ('words', 'part'),
  [
    ('speed', "'speed'"),
    ('input --also=seed=1', 'all must be data.FIELD=VALUE'),
    ('input --rounds=0', '1 or more'),
    ('step --rounds=x', "--rounds: 'x' is not an integer of 1 or more"),
  ],
)
def test_bad_arguments_are_refused(tool, words, part):
  subject, *rest = words.split()
  assert_refused(tool('benchmark', subject, *SMALL, *rest), part)


def test_rivals_that_cannot_run_are_refused(capsys):
  args = compare.parser().parse_args(['step', *SMALL, '--against=torch'])
  with pytest.raises(InputError, match='is for one CPU or GPU'):
    compare.main(args)
  with pytest.raises(SystemExit):
    compare.parser().parse_args(['step', '--against=tf'])
  assert 'tf is not one of flax, torch' in capsys.readouterr().err


# The other two are started with the packages that they need.
_SCRIPTS = {
  path.stem for path in pathlib.Path(compare.__file__).parent.glob('*.py')
} - {'input_rivals', 'torch_step'}


@pytest.mark.parametrize('name', sorted(_SCRIPTS))
def test_every_script_can_be_imported(name):
  if package := {'photographs_torch': 'timm', 'weights': 'torch'}.get(name):
    pytest.importorskip(package)
  importlib.import_module(f'benchmarks.{name}')


@pytest.mark.parametrize(
  ('field', 'value', 'part'),
  [
    ('ema_decay', 0.9, "type --config.ema_decay='None'"),
    ('data.size_schedule', ((0.0, 64),), "--config.data.size_schedule='()'"),
    ('augment.mixup_alpha', 0.2, "type --config.augment.mixup_alpha='0.0'"),
    ('optimizer.name', 'lars', 'not one of sgd, adamw'),
    ('model.name', 'cifar_resnet20', 'not in timm'),
  ],
)
def test_recipes_without_a_counterpart_in_pytorch_are_refused(
  field, value, part
):
  pytest.importorskip('timm')
  check = importlib.import_module('benchmarks.photographs_torch').check
  config = imagenette.get_config()
  check(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(InputError, match=re.escape(part)):
    check(config)
