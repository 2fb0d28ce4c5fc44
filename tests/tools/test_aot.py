"""The aot tool: what it says of a compiled step, and of devices and memory."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from configs import fake, resnet50, resnet50_lars
from resnet.errors import InputError
from resnet.tools import aot, collectives, command, compiled, topologies
from resnet.tools.compiled import Compiled, OutOfMemoryError
from resnet.tools.topologies import CHIPS, Topology

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f'--config={ROOT}/configs/fake.py'
SMALL = (CONFIG, '--config.model.bn_group_size=8')
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='no libtpu'
)


# ml_collections loads config files in a way that Python 3.12 will not know.
pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)


@pytest.fixture(autouse=True)
def _eight_devices():
  """JAX has begun: the tool must take the devices that there are."""
  assert len(jax.devices()) == 8


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> what the tool prints; raises SystemExit for bad input."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['aot', *args])
    command.run(aot.main, aot.parser())
    return capsys.readouterr().out

  return run


@pytest.fixture
def _cache():
  """JAX's cache as it was, before and after `open_topology` switches it off."""
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


def rows(report, *, per_layer, program='train'):
  return [
    row
    for row in report[program]['collectives']
    if row['per_layer'] == per_layer
  ]


def test_groups_on_a_device_leave_the_gradients_to_reduce(run):
  report = json.loads(run(*SMALL, '--topology=cpu:8', '--json'))
  assert report['num_chips'] == 8
  assert report['sharding'] == {'data': 8, 'fsdp': 1}
  assert report['batch_size_per_chip'] == 8
  assert not rows(report, per_layer=True)
  (row,) = rows(report, per_layer=False)
  assert row['kind'] == 'all-reduce' and row['count'] <= 4
  num_params = 75_290
  # Gradients, and next to them running statistics and sums of metrics.
  assert 4 * num_params <= row['bytes'] < 4 * num_params * 1.05
  train = report['train']
  # Parameters and momentum, and a device's share of the batch.
  assert train['argument_bytes'] == pytest.approx(
    2 * 4 * num_params + 8 * 16 * 16 * 3, rel=0.05
  )
  assert train['peak_bytes'] >= (
    train['argument_bytes'] + train['temporary_bytes']
  )
  # Of a virtual CPU there is nothing to compare with.
  assert 'hbm_bytes' not in report and 'estimate' not in report


def test_the_whole_batch_as_a_group_costs_collectives_in_each_layer(run):
  report = json.loads(run(CONFIG, '--topology=cpu:8', '--json'))
  layers = [row for row in rows(report, per_layer=True) if row['layers']]
  assert sum(row['count'] for row in layers) == 2 * 7
  names = {name for row in layers for name in row['layers']}
  assert any('bn1' in name for name in names), names


def test_a_split_state_is_gathered_and_an_evaluation_adds_up(run):
  report = json.loads(
    run(*SMALL, '--topology=cpu:4', '--config.sharding.fsdp=4', '--json')
  )
  assert report['sharding'] == {'data': 1, 'fsdp': 4}
  kinds = {row['kind'] for row in report['train']['collectives']}
  assert 'all-gather' in kinds
  kinds = {row['kind'] for row in report['eval']['collectives']}
  assert kinds == {'all-gather', 'all-reduce'}


def test_a_person_reads_lines(run):
  text = run(*SMALL, '--topology=cpu:8')
  lines = text.splitlines()
  assert lines[0] == (
    f'{ROOT}/configs/fake.py on cpu:8: 8 chips (data 8 x fsdp 1), batch 64, 8'
    ' a chip. Of one chip:'
  )
  assert [line.split()[0] for line in lines[1:6]] == [
    'train:',
    'memory',
    'arithmetic',
    'traffic',
    'all-reduce',
  ]
  assert 'not per layer' in lines[5]


@pytest.mark.parametrize(
  ('topology', 'message'),
  [
    ('v5e:3x3', r'v5e:3x3 does not exist.*v5e: 2x2 2x4 .*16x16; v5p: .*4x4x4'),
    ('v9', 'v9 does not exist'),
    ('cpu', 'cpu does not exist'),
    ('cpu:0', 'cpu:0: 1 to 512'),
    ('cpu:16', 'begun with 8 devices'),
  ],
)
def test_a_topology_that_does_not_exist_is_told_with_those_that_do(
  topology, message
):
  with pytest.raises(InputError, match=message):
    topologies.open_topology(topology)


def test_without_libtpu_the_install_line_is_told(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(InputError, match=r"pip install 'jax\[tpu\]'"):
    topologies.open_topology('v5e:2x4')


def test_bad_input_is_one_line(run, capsys):
  with pytest.raises(SystemExit) as error:
    run(*SMALL, '--topology=v5e:1x9')
  assert error.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: --topology=v5e:1x9')


@pytest.mark.parametrize('config', [resnet50, resnet50_lars])
def test_imagenet_need_not_be_here(config):
  config = config.get_config()
  topology = topologies.open_topology('cpu:8')
  prepared = compiled.prepare(config, topology)
  assert prepared.train_reader.num_classes == 1000
  assert prepared.image_shape == (224, 224, 3)
  steps = config.num_epochs * 1_281_167 / config.batch_size
  assert prepared.length.num_steps == round(steps)


def test_a_wrong_field_is_told_though_the_data_are_not_here():
  config = resnet50.get_config()
  config.data.crop = 'none of these'
  with pytest.raises(InputError, match='crop'):
    compiled.prepare(config, topologies.open_topology('cpu:8'))


def test_for_a_tpu_the_convolutions_are_those_of_a_tpu():
  devices = topologies.open_topology('cpu:8').devices
  pod = Topology(name='v5e:2x4', devices=devices, chip=CHIPS['v5e'])
  assert compiled.prepare(fake.get_config(), pod).task.model.conv_backend == (
    'xla'
  )
  config = fake.get_config()
  config.model.conv_backend = 'matmul'
  model = compiled.prepare(config, pod).task.model
  assert model.conv_backend == 'matmul'


@pytest.fixture
def pod():
  """Eight chips of a v5e, compiled for as CPUs."""
  devices = topologies.open_topology('cpu:8').devices
  return Topology(name='v5e:2x4', devices=devices, chip=CHIPS['v5e'])


def made_up(temporary_bytes, fixed_bytes=1e9):
  return Compiled(
    seconds=100.0,
    argument_bytes=int(fixed_bytes),
    temporary_bytes=int(temporary_bytes),
    peak_bytes=int(fixed_bytes + temporary_bytes),
    flops=2e12,
    accessed_bytes=8e10,
    collectives=[{'kind': 'all-reduce', 'bytes': 10**8}],
  )


@pytest.mark.parametrize(
  ('bytes_per_image', 'constant', 'largest'),
  [(1e7, 0.0, 56), (1e7, 1e8, 40), (1e6, 0.0, 64), (1e9, 0.0, 0)],
)
@pytest.mark.parametrize('guess', [1, 50, 64])
def test_the_search_ends_at_the_largest_batch_that_fits(
  monkeypatch, pod, bytes_per_image, constant, largest, guess
):
  """A chip of 0.6 GB: 0.04 of arguments, and what a batch takes.

  `fake` has 512 images: no more than 64 a chip.
  """
  chip = dataclasses.replace(pod.chip, hbm_bytes=0.6e9)
  pod = dataclasses.replace(pod, chip=chip)
  tried = []

  def compile_train(run):
    batch = run.length.batch_size // 8
    tried.append(batch)
    train = made_up(constant + batch * bytes_per_image, fixed_bytes=0.04e9)
    if train.peak_bytes > chip.hbm_bytes:
      raise OutOfMemoryError(train.peak_bytes, chip.hbm_bytes)
    return train

  monkeypatch.setattr(compiled, 'compile_train', compile_train)
  config = fake.get_config()
  config.model.bn_group_size = 8
  assert aot._search(config, pod, guess) == largest
  assert len(tried) <= 6


def test_the_search_finds_one_that_fits_where_memory_grows_in_leaps(
  monkeypatch, pod
):
  """A chip of 0.65 GB, where 33 images take 0.68 as 64 do."""
  pod = dataclasses.replace(
    pod, chip=dataclasses.replace(pod.chip, hbm_bytes=0.65e9)
  )

  def compile_train(run):
    padded = -(-run.length.batch_size // 8 // 32) * 32
    train = made_up(padded * 1e7, fixed_bytes=0.04e9)
    if train.peak_bytes > 0.65e9:
      raise OutOfMemoryError(train.peak_bytes, 0.65e9)
    return train

  monkeypatch.setattr(compiled, 'compile_train', compile_train)
  config = fake.get_config()
  config.model.bn_group_size = 1
  assert 0 < aot._search(config, pod, 63) <= 32


@pytest.mark.parametrize(
  'message',
  [
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.00G of'
    ' 15.75G hbm. Exceeded hbm capacity by 4.25G.',
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required'
    ' for HLO temporaries (20.00G) exceeds available HBM (15.75G).',
  ],
)
def test_the_compiler_says_that_memory_is_short(message):
  class Step:
    def lower(self, *_):
      return self

    def compile(self):
      raise jax.errors.JaxRuntimeError(message)

  with pytest.raises(OutOfMemoryError) as error:
    compiled.build(Step())
  assert error.value.needed_bytes == 20 * 2**30
  assert error.value.hbm_bytes == 15.75 * 2**30


def test_too_large_a_batch_is_told_with_one_that_fits(monkeypatch, pod):
  def compile_train(run):
    batch = run.length.batch_size // 8
    if batch > 16:
      raise OutOfMemoryError(batch * 1e9, 16e9)
    return made_up(batch * 0.9e9, fixed_bytes=0.5e9)

  monkeypatch.setattr(compiled, 'compile_train', compile_train)
  config = fake.get_config()
  config.model.bn_group_size = 8
  error = aot._too_large(OutOfMemoryError(32e9, 16e9), config, pod, 32)
  assert 'batch of 32 images a chip takes 32.00 GB' in str(error)
  assert 'has 16.00 GB' in str(error)
  assert 'fit is 16: --config.batch_size=128' in str(error)


@pytest.mark.parametrize(
  ('temporary_bytes', 'largest'),
  # 14.9 GB are left; an image takes its 300 bytes, and 1/8 of the temporaries.
  [(8e9, 8 + 14), (0, 8 + 49_666_666)],
)
def test_the_largest_batch_fills_what_is_left(pod, temporary_bytes, largest):
  chip = dataclasses.replace(pod.chip, hbm_bytes=15.9e9 + temporary_bytes)
  train = made_up(temporary_bytes)
  limits = aot._limits(chip, train, 8, (10, 10, 3))
  assert limits['headroom_bytes'] == pytest.approx(14.9e9)
  assert limits['estimated_largest_batch_size_per_chip'] == largest


def test_the_estimate_is_the_slowest_of_three(pod):
  """197e12 FLOP/s, 819e9 B/s of memory, 200e9 B/s out of a chip."""
  estimate = aot._roofline(pod, made_up(1e9), 2048)
  assert estimate['seconds']['arithmetic'] == pytest.approx(2e12 / 197e12)
  assert estimate['seconds']['memory'] == pytest.approx(8e10 / 819e9)
  assert estimate['seconds']['collectives'] == pytest.approx(
    2 * 1e8 * 7 / 8 / 200e9
  )
  assert estimate['bound_by'] == 'memory'
  assert estimate['images_per_second'] == pytest.approx(2048 / (8e10 / 819e9))


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (
      '  %all-reduce.1 = f32[64]{0} all-reduce(%x), channel_id=1,'
      ' metadata={op_name="jit(step)/ResNet/stage1_block1/bn1/reduce_sum"}',
      ('all-reduce', 256, 1, 'stage1_block1/bn1'),
    ),
    (
      '  ROOT %all-reduce.2 = (f32[3,3]{1,0}, bf16[8]{0}) all-reduce(%a, %b),'
      ' metadata={op_name="jit(step)/ResNet/stage1_block1/bn1/reduce_sum"}',
      ('all-reduce', 36 + 16, 2, None),
    ),
    (
      '  %all-reduce.55 = (f32[16]{0:T(128)S(1)}, f32[16]{0:T(128)S(1)})'
      ' all-reduce(%a, %b), metadata={op_name="jit(train_step)/jvp(ResNet)'
      '/ResNet._forward/stem_bn/stem_bn._group_statistics/reduce_sum"}',
      ('all-reduce', 128, 2, 'stem_bn'),
    ),
    (
      '  %b = (f32[256]{0}, f32[256]{0}, f32[256]{0}, f32[256]{0}) all-reduce('
      '%a, %b, %c, %d), metadata={op_name="jit(step)/jvp(ResNet)/ResNet'
      '/stage1_block1/shortcut_bn/shortcut_bn._group_statistics/reduce_sum"}',
      ('all-reduce', 4096, 4, 'stage1_block1/shortcut_bn'),
    ),
    (
      '  %j = (f32[10]{0}, f32[1,64]{1,0}, f32[1,64]{1,0}) all-reduce(%a, %b,'
      ' %c), metadata={op_name="jit(step)/ResNet/(head/reduce_sum:'
      'stage1_block1/bn2/reduce_sum:stage1_block1/bn2/reduce_sum)"}',
      ('all-reduce', 552, 3, 'stage1_block1/bn2'),
    ),
    (
      '  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(f32[2]{0} %x)',
      ('all-gather', 64, 1, None),
    ),
    (
      '  %s = f32[16]{0} all-reduce-start(f32[16]{0} %x)',
      ('all-reduce', 64, 1, None),
    ),
    ('  %p = pred[] all-reduce(%x)', ('all-reduce', 1, 1, None)),
    ('  %d = f32[16]{0} all-reduce-done(%s)', None),
    ('  %g = f32[16]{0} get-tuple-element(%all-reduce.2), index=0', None),
  ],
)
def test_collectives_are_read_from_hlo(line, expected):
  found = collectives.find(line)
  assert [dataclasses.astuple(one) for one in found] == (
    [expected] if expected else []
  )


@needs_libtpu
@pytest.mark.slow
def test_two_processes_may_compile_at_once():
  code = (
    'from resnet.tools import topologies\n'
    'print(len(topologies.open_topology("v5e:2x4").devices), flush=True)\n'
    'input()'
  )
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  try:
    assert [process.stdout.readline() for process in processes] == ['8\n'] * 2
  finally:
    for process in processes:
      process.communicate('\n')


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures('_cache')
def test_for_a_pod_the_statistics_of_groups_stay_on_a_chip(run):
  pod = (CONFIG, '--config.batch_size=128', '--topology=v5e:4x4', '--json')
  groups = json.loads(run(*pod, '--config.model.bn_group_size=8'))
  assert groups['num_chips'] == 16
  assert not rows(groups, per_layer=True)
  (row,) = rows(groups, per_layer=False)
  assert row['kind'] == 'all-reduce' and row['count'] <= 3
  assert 0 < groups['train']['peak_bytes'] < groups['hbm_bytes']
  whole = json.loads(run(*pod))
  (row,) = rows(whole, per_layer=True)
  # Seven batch norms, forward and backward.
  assert row['count'] == 14 and len(row['layers']) == 7


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures('_cache')
def test_a_pod_without_the_memory_is_told_with_a_batch_that_fits(run, capsys):
  pod = (
    *(CONFIG, '--config.data.name=imagenet2012', '--config.batch_size=1024'),
    *('--config.data.image_size=512', '--config.data.eval_resize=512'),
    *('--config.model.bn_group_size=128', '--topology=v5e:2x2'),
  )
  with pytest.raises(SystemExit) as error:
    run(*pod)
  assert error.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  found = re.search(
    r'A batch of 256 images a chip takes ([\d.]+) GB; a chip of v5e:2x2 has'
    r' ([\d.]+) GB\. .* fit is 128: --config\.batch_size=512$',
    line,
  )
  assert found, line
  assert float(found[1]) > float(found[2])
