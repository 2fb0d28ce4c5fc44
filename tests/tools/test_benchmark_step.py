"""The benchmarks of step, loop, checkpoint and start: figures that add up."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flax_step
from configs import fake
from resnet.errors import InputError
from resnet.tools import benchmark, compiled, programs, timing, traces
from resnet.training.step import jit_steps


@pytest.fixture(autouse=True)
def _settings():
  yield
  jax.config.update('jax_enable_compilation_cache', True)


def configure(**fields):
  config = fake.get_config()
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return config


def run(*words, **fields):
  # The config is given below.
  args, _ = benchmark.parser().parse_known_args(words)
  args.config, args.config_path = configure(**fields), 'fake'
  benchmark.main(args)


def measure(subject, tmp_path, *words):
  path = tmp_path / 'figures.json'
  run(subject, '--rounds=3', '--seconds=0.01', f'--json={path}', *words)
  return json.loads(path.read_text())


def test_figures_of_a_step_add_up(tmp_path, capsys):
  trace = tmp_path / 'trace'
  found = measure(
    'step',
    tmp_path,
    '--against=flax',
    '--also=model.remat=True',
    f'--profile={trace}',
  )
  ms, rate = found['ms'], found['images_per_second']
  assert ms['low'] <= ms['median'] <= ms['high']
  # Of an odd number of rounds the same one is in the middle.
  assert rate['median'] == pytest.approx(64 / ms['median'] * 1e3)
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
  again = found['against']['model.remat=True']
  assert again['flops'] > 1.1 * found['flops']
  kinds = found['time_by_kind']
  assert sum(kinds.values()) == pytest.approx(1)
  assert kinds['convolution'] > 0 and kinds['collective'] > 0
  shares = [row['share'] for row in found['costliest']]
  assert len(shares) == 10 and shares == sorted(shares, reverse=True)
  assert list(trace.rglob('*.xplane.pb'))
  text = capsys.readouterr().out
  assert f'{rate["median"]:,.1f} images/s' in text and 'times flax' in text
  assert found['costliest'][0]['name'] in text


@pytest.mark.slow
def test_an_evaluation_has_a_third_of_the_arithmetic(tmp_path, capsys):
  train = compiled.compile_train(programs.resolve_here(configure()))
  found = measure('eval', tmp_path)
  assert found['batch_size'] == 64
  assert found['flops'] == pytest.approx(train.flops / 3, rel=0.2)
  # The operations are told on demand.
  assert found['costliest'][0]['name'] not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['step', '--against=tf'], 'tf is none of flax, torch, torch-eager, torc'),
    (['step', '--rounds=0'], '--rounds must be at least 1'),
    (['step', '--also=model.speed=1'], 'speed'),
    (['step', '--against=torch'], 'is for one CPU or GPU'),
    (['loop', '--rounds=0'], 'at least 1'),
    (['loop', '--intervals=9'], 'more than the 16 steps of the run'),
    (['checkpoint', '--saves=1'], '--saves must be at least 2'),
    (['checkpoint', '--folder=/none'], 'is no folder'),
    (['startup', '--rounds=0'], 'at least 1'),
  ],
)
def test_bad_arguments_are_said(words, message):
  with pytest.raises(InputError, match=message):
    run(*words)


def test_flax_has_the_plain_networks_only():
  config = configure(model__name='cifar_preact_resnet110')
  with pytest.raises(InputError, match='flax has no cifar_preact_resnet110'):
    programs.flax(programs.resolve_here(config), 'step')


@pytest.mark.parametrize(
  ('name', 'stage_sizes'),
  [
    ('cifar_resnet8', None),
    pytest.param('resnet50', (1, 1), marks=pytest.mark.slow),
  ],
)
def test_the_straightforward_step_is_the_same_step(name, stage_sizes):
  """Parameters, statistics and loss after three updates."""
  run = programs.resolve_here(
    configure(
      model__name=name, data__image_size=16, data__eval_resize=16, batch_size=16
    )
  )
  network = flax_step.create_network(name, num_classes=10, dtype=jnp.float32)
  task = run.task
  if stage_sizes:
    object.__setattr__(task, 'model', task.model.clone(stage_sizes=stage_sizes))
    network = network.clone(stage_sizes=stage_sizes)
  steps = jit_steps(task, run.sharding)
  batch = programs.batch_on_device(run, 16)
  theirs = jax.jit(
    functools.partial(flax_step.train_step, model=network, task=task)
  )
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


def test_the_loop_is_compared_with_its_step(tmp_path):
  path = tmp_path / 'figures.json'
  run('loop', '--rounds=2', '--intervals=1', f'--json={path}')
  found = json.loads(path.read_text())
  rates = found['images_per_second']
  assert set(rates) == {'step', 'loop'}
  assert 0.05 < found['ratio']['median'] < 5


def test_saves_and_restores_are_timed(tmp_path):
  path = tmp_path / 'figures.json'
  run('checkpoint', '--saves=3', f'--folder={tmp_path}', f'--json={path}')
  found = json.loads(path.read_text())
  # Parameters and momentum.
  assert found['state_bytes'] == pytest.approx(2 * 4 * 75_290, rel=0.02)
  assert found['stall_seconds']['median'] <= found['save_seconds']['median']
  assert found['restore_seconds']['low'] > 0
  assert list(tmp_path.iterdir()) == [path]  # Nothing is left.


@pytest.mark.slow
def test_a_start_is_faster_where_programs_are_kept(tmp_path, monkeypatch):
  path = tmp_path / 'figures.json'
  monkeypatch.setenv('XLA_FLAGS', '')
  flags = ['--config=configs/fake.py', '--config.model.name=cifar_resnet20']
  args, rest = benchmark.parser().parse_known_args(
    ['startup', '--rounds=1', f'--json={path}']
  )
  args.flags, args.config_path = [*rest, *flags], 'fake'
  benchmark.main(args)
  found = json.loads(path.read_text())['seconds']
  for phases in found.values():
    *parts, whole = phases.values()
    assert sum(parts) == pytest.approx(whole)
    assert min(parts) > 0
  assert found['warm']['compile'] < 0.7 * found['cold']['compile']


def test_measurements_take_turns():
  order = []
  roads = {
    name: functools.partial(lambda name: order.append(name) or 1.0, name)
    for name in 'ab'
  }
  found = timing.in_turn(roads, 3)
  assert order == list('abbaab')
  assert found == {'a': [1.0] * 3, 'b': [1.0] * 3}


def test_spread_and_ratios():
  assert timing.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
    'median': 3.0,
    'low': 2.0,
    'high': 4.0,
  }
  assert timing.spread([2.0]) == {'median': 2.0, 'low': 2.0, 'high': 2.0}
  assert timing.pair_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_kinds_are_read_from_a_program():
  def program(x, kernel, matrix):
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    with jax.named_scope('pool'):
      y = jax.lax.reduce_window(
        y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
      )
    return jnp.sum(jnp.exp(y)), matrix @ matrix, jnp.sort(x)

  shapes = [(2, 8, 8, 3), (3, 3, 3, 4), (64, 64)]
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  built, facts = compiled.build(jax.jit(program), *args)
  kinds = [kind for kind, _ in traces._instructions(built.as_text()).values()]
  for kind in ('convolution', 'matrix product', 'pooling', 'reduction'):
    assert kind in kinds, kind
  assert facts.flops > 2 * 64**3


def test_a_kind_that_only_other_backends_have():
  text = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %c = (f32[8]{0}, u8[0]{0}) custom-call(%p), custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/transpose(jvp(N))/N._forward/stage1_block1/conv1/conv"}
  %g = f32[8]{0:T(256)} custom-call(%p), custom_call_target="__cublas$gemm"
  %r = f32[8]{0} all-reduce(%g), to_apply=%add
  %w = f32[8]{0} while(%r), body=%b
  ROOT %t = f32[8]{0} copy(%r)
}
"""  # noqa: E501
  found = traces._instructions(text)
  assert found['c'] == ('convolution', 'stage1_block1/conv1/conv (gradient)')
  assert found['g'] == ('matrix product', '')
  assert found['r'][0] == 'collective' and found['t'][0] == 'copy'
  assert 'w' not in found


def test_the_time_of_a_convolution_that_other_threads_do():
  def event(name, start, duration, operation=True):
    return types.SimpleNamespace(
      name=name,
      start_ns=start,
      duration_ns=duration,
      stats={'hlo_op': name}.items() if operation else (),
    )

  lines = [
    [
      event('sine', 0.0, 100.0),
      event('conv', 100.0, 5.0),
      event('end: sine', 110.0, 1.0, operation=False),
    ],
    [
      event('add', 500.0, 20.0),  # What waits for it runs before its end.
      event('conv2', 520.0, 5.0),
      event('end: conv', 530.0, 1.0, operation=False),
    ],
    [event('end: conv2', 900.0, 1.0, operation=False)],
  ]
  lines = [types.SimpleNamespace(name='', events=events) for events in lines]
  profile = types.SimpleNamespace(planes=[types.SimpleNamespace(lines=lines)])
  assert dict(traces._events(profile)) == {
    'sine': 100.0,
    'conv': 400.0,
    'add': 20.0,
    'conv2': 380.0,
  }
