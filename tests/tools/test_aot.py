"""The aot tool: figures of a compiled step, topologies and memory."""

import importlib.util
import json

import jax
from jax import lax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from configs import resnet50
from resnet.tools.aot import collectives, compiled, topologies
from resnet.tools.aot.compiled import Compiled, OutOfMemoryError
from resnet.tools.aot.topologies import CHIPS, Topology
from resnet.tools.benchmark import programs
from tests.programs import SMALL, assert_refused
from tests.runs import fake_config

GROUPS = (*SMALL, '--config.model.bn_group_size=8')
SIZES = {'data__image_size': 8, 'data__eval_resize': 8}
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install 'jax[tpu]'",
)


@pytest.fixture
def _cache():
  """JAX's cache as it was, before and after `open_topology` switches it off."""
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


def rows(program, *, per_layer):
  return [
    row for row in program['collectives'] if row['per_layer'] == per_layer
  ]


def prepare(topology, **changes):
  config = fake_config(**SIZES, **changes)
  return compiled.prepare(config, topologies.open_topology(topology))


def test_groups_on_a_device_leave_only_gradients_to_reduce(tool):
  report = json.loads(tool('aot', *GROUPS, '--topology=cpu:8', '--json').stdout)
  assert report['num_chips'] == 8
  assert report['sharding'] == {'data': 8, 'fsdp': 1}
  assert report['batch_size_per_chip'] == 8
  train = report['train']
  assert not rows(train, per_layer=True)
  (row,) = rows(train, per_layer=False)
  assert row['kind'] == 'all-reduce' and row['count'] <= 4
  num_params = 75_290
  # Gradients, and next to them running statistics and sums of metrics.
  assert 4 * num_params <= row['bytes'] < 4 * num_params * 1.05
  # Parameters and momentum, and a device's share of the batch.
  assert train['argument_bytes'] == pytest.approx(
    2 * 4 * num_params + 8 * 8 * 8 * 3, rel=0.05
  )
  assert train['peak_bytes'] >= (
    train['argument_bytes'] + train['temporary_bytes']
  )
  # A virtual CPU has no peak figures.
  assert 'hbm_bytes' not in report and 'estimate' not in report


def test_the_whole_batch_as_a_group_costs_collectives_in_each_layer():
  train = compiled.build_subject(prepare('cpu:8'), 'step')[1]._asdict()
  layers = [row for row in rows(train, per_layer=True) if row['layers']]
  assert sum(row['count'] for row in layers) == 2 * 7
  names = {name for row in layers for name in row['layers']}
  assert any('bn1' in name for name in names), names


@pytest.mark.parametrize(
  ('topology', 'part'),
  [('v5e:3x3', 'v5e: 2x2 2x4'), ('cpu:16', 'JAX has 8 CPU devices')],
)
def test_an_unknown_topology_is_refused_with_a_list(tool, topology, part):
  result = tool('aot', *GROUPS, f'--topology={topology}')
  assert_refused(result, f'--topology={topology}', part)


def test_imagenet_is_not_needed():
  config = resnet50.get_config()
  topology = topologies.open_topology('cpu:8')
  prepared = compiled.prepare(config, topology)
  assert prepared.train_reader.source.num_classes == 1000
  assert prepared.image_shape == (224, 224, 3)
  steps = config.num_epochs * 1_281_167 / config.batch_size
  assert prepared.length.num_steps == round(steps)


def make_pod(**figures):
  """Returns eight chips of a v5e that are CPUs."""
  chip = CHIPS['v5e']._replace(**figures)
  return Topology(name='v5e:2x4', devices=tuple(jax.devices()), chip=chip)


def test_a_tpu_has_the_convolutions_of_a_tpu():
  for asked, backend in ((None, 'xla'), ('matmul', 'matmul')):
    run = compiled.prepare(fake_config(model__conv_backend=asked), make_pod())
    assert run.task.model.conv_backend == backend


@pytest.fixture
def aot_of_pod(tool, monkeypatch):
  """(memory, *args) -> what aot says of a pod, and what it compiled.

  A step has 40 MB of arguments, and memory(images a chip) of temporaries; a
  chip has 600 MB. `fake` has 512 images: no more than 64 a chip.
  """
  pod = make_pod(hbm_bytes=0.6e9)

  def run(memory, *args):
    batches = []

    def build(run, _):
      batches.append(run.length.batch_size // 8)
      temporary = int(memory(batches[-1]))
      peak = 40_000_000 + temporary
      if peak > pod.chip.hbm_bytes:
        raise OutOfMemoryError(peak, pod.chip.hbm_bytes)
      text = 'ENTRY m () -> f32[] {\n %a = f32[25000000]{0} all-reduce(%x)'
      return None, Compiled(
        seconds=100.0,
        argument_bytes=40_000_000,
        temporary_bytes=temporary,
        peak_bytes=peak,
        flops=2e12,
        accessed_bytes=8e10,
        collectives=collectives.summarize(text),
      )

    monkeypatch.setattr(topologies, 'open_topology', lambda _: pod)
    monkeypatch.setattr(compiled, 'build_subject', build)
    result = tool('aot', *GROUPS, '--topology=v5e:2x4', *args)
    return result, batches

  return run


@pytest.mark.parametrize(
  ('bytes_per_image', 'constant', 'largest'),
  [(1e7, 0.0, 56), (1e7, 1e8, 40), (1e6, 0.0, 64)],
)
def test_the_search_ends_at_the_largest_batch_that_fits(
  aot_of_pod, bytes_per_image, constant, largest
):
  result, batches = aot_of_pod(
    lambda batch: constant + batch * bytes_per_image, '--largest', '--json'
  )
  report = json.loads(result.stdout)
  assert report['largest_batch_size_per_chip'] == largest
  assert len(batches) <= 2 + 6  # An update, an evaluation, then the search.


@pytest.mark.parametrize(
  ('memory', 'part'),
  [
    # In leaps: 33 images take as much as 64.
    (lambda batch: -(-batch // 32) * 32 * 1e7, '--config.batch_size=256'),
    (lambda _: 1e9, 'No smaller batch that was tried fits'),
  ],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
  aot_of_pod, memory, part
):
  result, _ = aot_of_pod(memory, '--config.batch_size=512')
  assert_refused(result, part)


@pytest.mark.parametrize(
  ('temporary_bytes', 'largest'),
  # An image takes its 192 bytes, and 1/8 of the temporaries.
  [(8_000_000, 8 + 551), (0, 8 + 2_916_666)],
)
def test_headroom_and_speed_are_estimated(aot_of_pod, temporary_bytes, largest):
  """197e12 FLOP/s, 819e9 B/s of memory, 200e9 B/s out of a chip.

  Links between the ends of both axes are missing, and a sum crosses 1 + 3 hops.
  """
  result, _ = aot_of_pod(lambda _: temporary_bytes, '--json')
  report = json.loads(result.stdout)
  assert report['headroom_bytes'] == 560_000_000 - temporary_bytes
  assert report['estimated_largest_batch_size_per_chip'] == largest
  estimate = report['estimate']
  assert estimate['seconds'] == pytest.approx(
    {
      'arithmetic': 2e12 / 197e12,
      'memory': 8e10 / 819e9,
      'collectives': 2 * (1e8 * 7 / 8 / 100e9 + 4e-6),
    }
  )
  step = 8e10 / 819e9 + 2 * (1e8 * 7 / 8 / 100e9 + 4e-6)
  assert estimate['images_per_second'] == pytest.approx(64 / step)
  assert estimate['efficiency'] == pytest.approx(8e10 / 819e9 / step)


def test_the_text_shows_memory_and_collectives(aot_of_pod):
  result, _ = aot_of_pod(lambda _: 8_000_000)
  assert '48.00 MB: arguments 40.00 MB, temporaries 8.00 MB' in result.stdout
  assert 'not per layer' in result.stdout


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: Ran out of memory. Used 20.00G of 15.75G hbm.',
    # In another version of the compiler.
    'RESOURCE_EXHAUSTED: the total (20.00G) exceeds available HBM (15.75G).',
  ],
)
def test_memory_is_read_from_the_error_of_the_compiler(message):
  class Step:
    def lower(self, *_):
      return self

    def compile(self):
      raise jax.errors.JaxRuntimeError(message)

  with pytest.raises(OutOfMemoryError) as error:
    compiled.build(Step())
  assert error.value.needed_bytes == 20 * 2**30
  assert error.value.hbm_bytes == 15.75 * 2**30


BN = 'stage1_block1/bn1'


@pytest.mark.parametrize(
  ('code', 'source', 'expected'),
  [
    ('f32[64]{0} all-reduce', BN, ('all-reduce', 256, 1, BN)),
    # Of different shapes: of several layers, and of one and another.
    ('(f32[3]{0}, bf16[8]{0}) all-reduce', BN, ('all-reduce', 28, 2, None)),
    (
      '(f32[10]{0}, f32[1,64]{1,0}, f32[1,64]{1,0}) all-reduce',
      f'(head/reduce_sum:{BN}/reduce_sum:{BN}/reduce_sum)',
      ('all-reduce', 552, 3, BN),
    ),
    # For a TPU.
    (
      '(f32[16]{0:T(128)S(1)}, f32[16]{0:T(128)S(1)}) all-reduce',
      'jvp(ResNet)/ResNet._forward/stem_bn/stem_bn._group_statistics',
      ('all-reduce', 128, 2, 'stem_bn'),
    ),
    ('(f32[2]{0}, f32[16]{0}) all-gather-start', '', None),
    ('f32[16]{0} all-gather-done', '', ('all-gather', 64, 1, None)),
  ],
)
def test_collectives_are_read_from_hlo(code, source, expected):
  found = collectives.summarize(
    f'ENTRY main () -> f32[] {{\n  %a.1 = {code}(%all-reduce.2),'
    f' metadata={{op_name="jit(step)/ResNet/{source}/reduce_sum"}}'
  )
  if expected is None:
    assert not found
    return
  (row,) = found
  assert expected == (
    *(row['kind'], row['bytes'], row['tensors']),
    row['layers'][0] if row['per_layer'] else None,
  )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures('_cache')
def test_statistics_of_groups_stay_on_a_chip_of_a_pod(tool):
  pod = (SMALL[0], '--config.batch_size=128', '--topology=v5e:4x4', '--json')
  groups = json.loads(tool('aot', *pod, GROUPS[-1]).stdout)
  assert groups['num_chips'] == 16
  assert not rows(groups['train'], per_layer=True)
  assert 0 < groups['train']['peak_bytes'] < groups['hbm_bytes']
  whole = json.loads(tool('aot', *pod).stdout)
  (row,) = rows(whole['train'], per_layer=True)
  # Seven batch norms, forward and backward.
  assert row['count'] == 14 and len(row['layers']) == 7


def test_collectives_in_a_loop_count_each_time_that_it_runs():
  """5 times 3 products of 64 x 64 and 64 x 64; the sums cross devices."""
  sharding = jax.sharding.NamedSharding(
    jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,)),
    jax.sharding.PartitionSpec(None, 'x'),
  )
  x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding)

  def outer(_, x):
    return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x.T), x) + 1.0

  step = jax.jit(
    lambda x: lax.fori_loop(0, 5, outer, x), out_shardings=sharding
  )
  _, found = compiled.build(step, x)
  assert sum(row['count'] for row in found.collectives) == 15


def test_the_trip_count_of_a_loop_on_a_tpu_is_in_its_condition():
  text = """HloModule jit_step
%cond (p.1: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  %p.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
%body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  ROOT %r = (s32[]{:T(128)}, f32[8]{0}) all-reduce(%p.2), to_apply=%add
}
ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  ROOT %w = (s32[], f32[8]) while(%p), condition=%cond, body=%body
}"""
  (row,) = collectives.summarize(text)
  assert (row['count'], row['bytes']) == (4, 4 * 36)


@pytest.mark.slow
def test_micro_batches_do_not_change_the_counted_flops():
  """The loop over parts; XLA alone would count one of the 16."""
  found = []
  for parts in (1, 16):
    config = fake_config(
      batch_size=128, accumulation_steps=parts, model__bn_group_size=1
    )
    run = programs.resolve_here(config)
    found.append(compiled.build_subject(run, 'step')[1].flops)
  assert found[1] == pytest.approx(found[0], rel=0.1)
