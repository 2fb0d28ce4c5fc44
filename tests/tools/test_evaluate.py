"""The detailed evaluation: its numbers are those of a run's own."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.transforms import EvalTransform
from resnet.tools import command, evaluate
from resnet.training import run as run_lib

pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)

SMALL = {
  'num_epochs': 0.25,
  'batch_size': 64,
  'ema_decay': 0.9,
  'data.eval_resize': 20,
}
FLAGS = [f'--config.{name}={value}' for name, value in SMALL.items()]


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('evaluate'))
  config = fake.get_config()
  config.update_from_flattened_dict(SMALL)
  run_lib.run(experiment.resolve(config), folder, start_time=0.0)
  return folder


@pytest.fixture
def run(monkeypatch, capsys, workdir):
  """(*args) -> what the tool prints."""

  def run(*args):
    argv = ['evaluate', '--config=configs/fake.py', *FLAGS, *args]
    monkeypatch.setattr(sys, 'argv', [*argv, f'--workdir={workdir}'])
    command.run(evaluate.main, evaluate._parser())
    return capsys.readouterr().out

  return run


def last_evaluation(workdir):
  with open(f'{workdir}/metrics.jsonl') as file:
    lines = [json.loads(line) for line in file]
  return next(line for line in lines if 'eval/top1' in line)


@pytest.mark.parametrize('ema', [False, True])
def test_one_view_is_the_evaluation_of_the_run(run, workdir, tmp_path, ema):
  out = run(f'--output={tmp_path}/report', *(['--ema'] if ema else []))
  report = json.loads((tmp_path / 'report.json').read_text())
  theirs, which = last_evaluation(workdir), 'eval_ema' if ema else 'eval'
  for name in ('loss', 'top1', 'top5'):
    assert report[name] == pytest.approx(theirs[f'{which}/{name}'], rel=1e-4)
  assert report['num_examples'] == theirs['eval/num_examples']
  confusion = np.loadtxt(tmp_path / 'report.csv', delimiter=',')
  assert confusion.shape == (10, 10)
  assert confusion.sum() == report['num_examples']
  assert np.trace(confusion) / confusion.sum() == pytest.approx(report['top1'])
  assert 0 <= report['ece'] <= 1 and 'calibration error' in out
  assert len(report['worst_classes']) == 5
  assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')


def test_ten_views_are_the_mean_of_ten(run, workdir, tmp_path):
  run('--views=ten', f'--output={tmp_path}/ten')
  report = json.loads((tmp_path / 'ten.json').read_text())
  config = fake.get_config()
  config.update_from_flattened_dict(SMALL)
  _, state, there = evaluate.open_state(
    experiment.resolve(config), workdir, 'best'
  )
  count = len(there.eval_reader.source)
  reader = dataclasses.replace(
    there.eval_reader,
    transform=EvalTransform(size=20, resize_size=20),
    batch_size=count,
    row_count=count,
  )
  batch, total = reader(0), 0.0
  for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
    crops = batch['image'][:, top : top + 16, left : left + 16]
    for view in (crops, crops[:, :, ::-1]):
      logits = np.asarray(
        there.task.model.apply(
          state.variables, there.task.normalize(view), train=False
        )
      )
      total += np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  labels = batch['label']
  loss = -np.log(total[np.arange(count), labels] / 10).mean()
  assert report['loss'] == pytest.approx(loss, rel=1e-4)
  assert report['top1'] == pytest.approx((total.argmax(1) == labels).mean())


def test_bad_values_are_named(run, capsys):
  for args, message in (
    (['--views=five'], 'invalid choice'),
    (['--output=/proc/report'], 'cannot be written'),
  ):
    with pytest.raises(SystemExit) as exit_:
      run(*args)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
