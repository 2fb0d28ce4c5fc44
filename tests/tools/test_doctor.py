"""The doctor, where all is well, and where something is not."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import fake
from resnet import config_flag
from resnet.experiment import resolve
from resnet.tools import command, doctor, machine, rehearsal
from resnet.training.checkpoint import Checkpoints
from tests.data.in_memory import encode, make_source, smooth_image
from tests.programs import environment

# ml_collections loads config files in a way that Python 3.12 has no more.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  f'--config={ROOT}/configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
)
CHECKS = ['versions', 'devices', 'disk', 'data', 'classes']
CHECKS += ['checkpoint', 'step', 'input']


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
  monkeypatch.setattr(rehearsal, '_STEP_SECONDS', 0.01)
  monkeypatch.setattr(rehearsal, '_INPUT_SECONDS', 0.01)


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> (exit code, findings by check), from --json."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['doctor', *args, '--json'])
    code = 0
    try:
      command.run(doctor.main, doctor.parser())
    except SystemExit as exit_:
      code = exit_.code
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return code, {line['check']: line for line in lines}

  return run


@pytest.fixture(scope='module')
def experiment():
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  return resolve(config)


def with_source(experiment, source):
  reader = dataclasses.replace(experiment.train_reader, source=source)
  return dataclasses.replace(experiment, train_reader=reader)


def test_all_is_well_and_nothing_stays(run, tmp_path):
  code, found = run(*SMALL, f'--workdir={tmp_path}/runs/one')
  assert code == 0
  assert list(found) == CHECKS
  for name, line in found.items():
    # Whether reading keeps up depends on the machine.
    assert line['status'] in (('ok', 'warn') if name == 'input' else ('ok',))
  assert found['versions']['versions']['jax'] == jax.__version__
  assert found['devices']['count'] == 8
  assert found['data']['train']['num_records'] == 512
  assert found['data']['eval']['labels'] == [0, 9]
  assert found['step']['images_per_second'] == pytest.approx(
    64 / found['step']['step_seconds']
  )
  assert found['input']['share_of_need'] == pytest.approx(
    found['input']['images_per_second'] / found['step']['images_per_second']
  )
  assert list(tmp_path.iterdir()) == []


def test_a_person_gets_a_line_a_check(monkeypatch, capsys, tmp_path):
  argv = ['doctor', *SMALL, f'--workdir={tmp_path}/run']
  monkeypatch.setattr(sys, 'argv', argv)
  command.run(doctor.main, doctor.parser())
  printed = capsys.readouterr()
  lines = [line.split(maxsplit=2) for line in printed.out.splitlines()]
  assert [check for _, check, _ in lines] == CHECKS
  assert {status for status, _, _ in lines} <= {'ok', 'warn'}
  assert lines[3][2].startswith('fake: 512 train (labels 0 to 8 in 256 of them')
  assert printed.err == ''


def test_flags_are_those_of_main():
  args = doctor.parser().parse_args(['--config.batch_size', '64', '--json'])
  assert (args.config.data.name, args.config.batch_size) == ('digits', 64)
  assert (args.json, args.workdir) == (True, None)
  path = f'{ROOT}/configs/cifar10.py:resnet56'
  args = doctor.parser().parse_args(['--config', path])
  assert args.config.model.name == 'cifar_resnet56'
  assert config_flag.default_workdir(args.config_path) == (
    'runs/cifar10_resnet56'
  )


def test_a_disk_that_is_too_small_fails(run, monkeypatch, tmp_path):
  monkeypatch.setattr(machine, 'free_bytes', lambda _: 1_500_000)
  code, found = run(*SMALL, f'--workdir={tmp_path}/run')
  assert code == 2
  assert list(found) == CHECKS
  disk = found['disk']
  assert disk['status'] == 'FAIL'
  assert disk['needed_bytes'] == 5 * disk['state_bytes'] > disk['free_bytes']
  assert f'1.5 MB free in {tmp_path}, 3.0 MB needed' in disk['text']
  assert '--config.keep_checkpoints=1' in disk['text']
  assert found['checkpoint']['status'] == 'skip'
  assert found['step']['status'] == 'ok'


def test_checkpoints_that_are_there_need_no_more_space(experiment, tmp_path):
  size = machine.state_bytes(experiment)
  leaves = jax.tree.leaves(experiment.create_state())
  assert size == sum(x.nbytes for x in leaves)
  file = tmp_path / 'run' / 'checkpoints' / '8' / 'array'
  file.parent.mkdir(parents=True)
  file.write_bytes(bytes(size))
  found = machine.disk(experiment, str(tmp_path / 'run'))
  assert found.values['needed_bytes'] == 4 * size


def records(count=300):
  png = encode(smooth_image(8, 8), 'PNG')
  return [{'image': png, 'label': i % 10} for i in range(count)]


@pytest.mark.parametrize('label', [-1, 10])
def test_a_label_out_of_range_is_named(experiment, label):
  broken = records()
  # The last one is in the sample for sure.
  broken[299]['label'] = label
  found = rehearsal.data(
    with_source(experiment, make_source(broken, channels=3))
  )
  assert found.status == 'FAIL'
  assert (
    '1 of 256 are broken: The label of record 299 of made/train is'
    f' {label}; expected 0 to 9.'
  ) in found.text


def test_an_image_that_does_not_decode_is_named(run, experiment, monkeypatch):
  broken = records(20)
  for index in (3, 17):
    broken[index] |= {
      'image': broken[index]['image'][:60],
      'file_name': f'shape{index}.png'.encode(),
    }
  source = make_source(broken, channels=3)
  monkeypatch.setattr(
    doctor, 'resolve', lambda _: with_source(experiment, source)
  )
  code, found = run(*SMALL)
  assert code == 2
  assert found['data']['status'] == 'FAIL'
  assert '2 of 20 are broken: The image of record 3' in found['data']['text']
  assert 'shape3.png' in found['data']['text']
  assert found['data']['train']['num_broken'] == 2
  # The step is timed on made images; the input cannot be.
  assert found['step']['status'] == 'ok'
  assert found['input']['status'] == 'skip'


def named(experiment, names, num_classes=None):
  source = make_source(records(1), num_classes=num_classes or len(names))
  source = dataclasses.replace(source, class_names=tuple(names))
  return rehearsal.classes(with_source(experiment, source))


def test_names_of_classes(experiment):
  assert named(experiment, 'ab').text == '2: a, b'
  found = named(experiment, 'gfedcba')
  assert (found.status, found.text) == ('ok', '7: g, f, e, ..., c, b, a')
  assert named(experiment, 'aba').status == 'warn'
  assert named(experiment, 'ab', num_classes=3).status == 'FAIL'
  synsets = [f'n{i:08}' for i in range(1000)]
  assert named(experiment, synsets).status == 'ok'
  found = named(experiment, synsets[::-1])
  assert found.status == 'warn'
  assert 'not sorted' in found.text


def test_versions_are_those_of_the_requirements(monkeypatch, tmp_path):
  file = tmp_path / 'requirements.txt'
  file.write_text('# Of a test.\njax>=99\nnumpy>=1 # Any.\nno-such-thing\n')
  monkeypatch.setattr(machine, '_REQUIREMENTS', file)
  found = machine.versions()
  assert found.status == 'FAIL'
  assert f'jax {jax.__version__} is not in jax>=99' in found.text
  assert 'no-such-thing is missing: pip install' in found.text
  assert 'numpy' not in found.text.partition(':')[0]


def test_a_disk_that_changes_bits_fails(experiment, monkeypatch, tmp_path):
  def restore(self, step, target):
    del self, step
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)

  monkeypatch.setattr(Checkpoints, 'restore', restore)
  found = machine.checkpoint(experiment, str(tmp_path / 'run'))
  assert found.status == 'FAIL'
  assert 'other bits' in found.text
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_a_signal(run, monkeypatch, tmp_path, number):
  handler = signal.getsignal(number)
  save = Checkpoints.save

  def save_and_be_told_twice(self, state, metrics):
    save(self, state, metrics)
    assert len(list(tmp_path.iterdir())) == 1
    for _ in range(2):
      os.kill(os.getpid(), number)

  monkeypatch.setattr(Checkpoints, 'save', save_and_be_told_twice)
  code, found = run(*SMALL, f'--workdir={tmp_path}/run')
  assert code == 128 + number
  assert 'checkpoint' not in found
  assert list(tmp_path.iterdir()) == []
  assert signal.getsignal(number) is handler


def test_what_a_check_raises_is_its_finding(run, monkeypatch, tmp_path):
  def save(self, state, metrics):
    del self, state, metrics
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Checkpoints, 'save', save)
  code, found = run(*SMALL, f'--workdir={tmp_path}/run')
  assert code == 2
  assert list(found) == CHECKS
  assert found['checkpoint']['status'] == 'FAIL'
  assert 'No space left on device' in found['checkpoint']['text']
  assert list(tmp_path.iterdir()) == []


def test_slow_reading_is_a_warning(experiment):
  found = rehearsal.input_speed(experiment, 1e12)
  assert found.status == 'warn'
  assert 'times as many: raise --config.data.num_workers' in found.text
  found = rehearsal.input_speed(experiment, 1e-3)
  assert found.status == 'ok'
  assert rehearsal.input_speed(experiment, None).status == 'ok'


@pytest.mark.parametrize(
  ('arg', 'part'),
  [
    ('--config.batch_sise=3', 'batch_size'),
    ('--config=configs/nothing.py', 'configs/nothing.py'),
    ('--config.batch_size=63', 'multiples of 8'),
    ('--config.data.name=cifar10', "tfds.builder('cifar10'"),
    ('--nonsense=1', 'nonsense'),
    ('train', "'train' is not a flag"),
    ('--workdir=', 'is no folder'),
    ('--workdir=gs://bucket/run', 'is an address, no folder'),
  ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, arg, part):
  monkeypatch.setattr(sys, 'argv', ['doctor', arg])
  with pytest.raises(SystemExit) as exit_:
    command.run(doctor.main, doctor.parser())
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ')
  assert part in line


@pytest.mark.slow
def test_it_is_a_command(tmp_path, data_dir):
  args = (*SMALL, '--config.data.num_workers=1', f'--workdir={tmp_path}/run')
  result = subprocess.run(
    [sys.executable, '-m', 'resnet.tools.doctor', *args],
    cwd=ROOT,
    env=environment(TFDS_DATA_DIR=data_dir),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert len(result.stdout.splitlines()) == len(CHECKS)
  assert 'num_workers=1' in result.stdout
  assert list(tmp_path.iterdir()) == []
