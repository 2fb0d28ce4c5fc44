"""The doctor, where all is well, and where something is not."""

import dataclasses
import importlib.metadata
import os
import re
import signal

import jax
import pytest

from resnet.data.sources import imagenet
from resnet.data.sources.imagenet_names import readable_name
from resnet.run.checkpoint import Checkpoints
from resnet.tools.command import size_text
from resnet.tools.doctor import __main__ as doctor
from resnet.tools.doctor import checks
from tests.data.in_memory import encode, make_source, smooth_image
from tests.programs import SMALL, assert_refused
from tests.runs import resolve

CHECKS = ['versions', 'devices', 'disk', 'data', 'checkpoint', 'step', 'input']


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
  monkeypatch.setattr(checks, 'STEP_SECONDS', 0.01)
  monkeypatch.setattr(checks, 'INPUT_SECONDS', 0.01)


@pytest.fixture
def examine(tool):
  """(*args) -> exit code, status and text by check."""

  def examine(*args):
    result = tool('doctor', *SMALL, *args)
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    return result.returncode, {name: (x, text) for x, name, text in lines}

  return examine


@pytest.fixture(scope='module')
def experiment():
  return resolve(data__image_size=8, data__eval_resize=8)


def with_source(experiment, source):
  reader = dataclasses.replace(experiment.train_reader, source=source)
  return dataclasses.replace(experiment, train_reader=reader)


def test_a_good_run_passes_and_leaves_nothing_behind(examine, tmp_path):
  code, found = examine(f'--workdir={tmp_path}/runs/one')
  assert code == 0
  assert list(found) == CHECKS
  for name, (status, _) in found.items():
    # Whether reading keeps up depends on the machine.
    assert status in (('ok', 'warn') if name == 'input' else ('ok',))
  assert f'jax {jax.__version__}, ' in found['versions'][1]
  assert found['devices'][1].startswith('8 x ')
  assert '100 test (labels 0 to 9 in 100 of them)' in found['data'][1]
  rate, ms = re.match(r'(.*) images/s, (.*) ms', found['step'][1]).groups()
  rate, ms = (float(x.replace(',', '')) for x in (rate, ms))
  assert rate == pytest.approx(64 / ms * 1e3, rel=0.02)
  assert list(tmp_path.iterdir()) == []


def test_checkpoints_in_the_folder_need_no_more_space(experiment, tmp_path):
  size = checks.state_bytes(experiment)
  leaves = jax.tree.leaves(experiment.create_state())
  assert size == sum(x.nbytes for x in leaves)
  file = tmp_path / 'run' / 'checkpoints' / '8' / 'array'
  file.parent.mkdir(parents=True)
  file.write_bytes(bytes(size))
  found = checks.disk(experiment, str(tmp_path / 'run'))
  assert f', {size_text(4 * size)} needed (5 checkpoints' in found.text


def records(count):
  png = encode(smooth_image(8, 8), 'PNG')
  return [{'image': png, 'label': i % 10} for i in range(count)]


def test_a_small_disk_and_broken_records_fail(
  examine, experiment, monkeypatch, tmp_path
):
  usage = checks.shutil.disk_usage(tmp_path)._replace(free=1_500_000)
  monkeypatch.setattr(checks.shutil, 'disk_usage', lambda _: usage)
  broken = records(300)  # A sample of 256 has the first and the last.
  broken[0]['label'], broken[299]['label'] = 10, -1
  broken[3]['image'] = b'PNG'
  source = make_source(broken, channels=3)
  monkeypatch.setattr(
    doctor, 'resolve', lambda _: with_source(experiment, source)
  )
  code, found = examine(f'--workdir={tmp_path}/run')
  assert code == 2
  assert {name: status for name, (status, _) in found.items()} == {
    **dict.fromkeys(CHECKS, 'ok'),
    'disk': 'FAIL',
    'checkpoint': 'skip',
    'data': 'FAIL',
    # The step is timed on made images; the input cannot be.
    'input': 'skip',
  }
  assert '1.5 MB free in' in found['disk'][1]
  text = found['data'][1]
  assert '3 of 256 are broken: The label of record 0' in text
  assert ' is 10; expected 0 to 9.' in text


def test_classes_of_imagenet_must_be_sorted(experiment):
  names = imagenet.class_names()
  for order, status in ((names, 'ok'), (names[::-1], 'warn')):
    source = make_source(records(1), num_classes=1000)
    source = dataclasses.replace(source, class_names=order)
    found = checks.data(with_source(experiment, source))
    assert found.status == status
    assert f'1,000 classes ({readable_name(order[0])}, ' in found.text


def test_versions_are_those_of_the_requirements(tmp_path):
  file = tmp_path / 'requirements.txt'
  file.write_text('# Of a test.\njax>=99\nnumpy>=1 # Any.\nno-such-thing\n')
  found = checks.versions(file)
  assert found.status == 'FAIL'
  assert f'jax {jax.__version__} is not in jax>=99' in found.text
  assert 'no-such-thing is missing: pip install' in found.text
  assert 'numpy' not in found.text.partition(':')[0]


def test_without_requirements_versions_are_those_of_the_package(
  tmp_path, monkeypatch
):
  required = ['jax>=99', 'numpy>=1', 'no-such-thing; extra == "serve"']
  monkeypatch.setattr(importlib.metadata, 'requires', lambda _: required)
  found = checks.versions(tmp_path / 'requirements.txt')
  wrong = f'jax {jax.__version__} is not in jax>=99: pip install resnet-flax ('
  assert found.status == 'FAIL' and found.text.startswith(wrong)


def test_an_exception_of_a_check_is_its_finding(examine, monkeypatch, tmp_path):
  def save(self, state, metrics):
    del self, state, metrics
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Checkpoints, 'save', save)
  code, found = examine(f'--workdir={tmp_path}/run')
  assert (code, list(found)) == (2, CHECKS)
  status, text = found['checkpoint']
  assert status == 'FAIL' and 'No space left on device' in text
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_save_leaves_nothing_behind(
  examine, monkeypatch, tmp_path, number
):
  handler = signal.getsignal(number)
  save = Checkpoints.save

  def save_and_be_told(self, state, metrics):
    save(self, state, metrics)
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(os.getpid(), number)

  monkeypatch.setattr(Checkpoints, 'save', save_and_be_told)
  code, found = examine(f'--workdir={tmp_path}/run')
  assert code == 128 + number
  assert 'checkpoint' not in found
  assert list(tmp_path.iterdir()) == []
  assert signal.getsignal(number) is handler


@pytest.mark.parametrize(
  ('arg', 'part'),
  [
    ('--config.batch_sise=3', 'batch_size'),
    ('--workdir=gs://bucket/run', 'is an address, not a folder'),
  ],
)
def test_bad_input_is_one_line(tool, arg, part):
  assert_refused(tool('doctor', arg), 'error: ', part)
