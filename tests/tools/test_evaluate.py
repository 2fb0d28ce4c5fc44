"""The detailed evaluation: its numbers are those of a run's own."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.scales import ScalesTransform, paper_sides
from resnet.data.transforms import EvalTransform, resize_and_center_crop
from resnet.tools import command, evaluate
from resnet.training import precise_bn
from resnet.training import run as run_lib
from resnet.training.views import cut_scales
from tests.data.in_memory import smooth_image

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
    command.run(evaluate.main, evaluate.parser())
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


@pytest.fixture(scope='module')
def restored(workdir):
  """The state of the run, and its experiment."""
  config = fake.get_config()
  config.update_from_flattened_dict(SMALL)
  _, state, there = evaluate.open_state(
    experiment.resolve(config), workdir, 'best'
  )
  return state, there


def mean_of(views, variables, task):
  """Mean probabilities of views [N, s, s, C], one after the other."""
  apply = jax.jit(
    lambda view: task.model.apply(variables, task.normalize(view), train=False)
  )
  total = 0.0
  for view in views:
    logits = np.asarray(apply(view), np.float64)
    total += np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return total / len(views)


def check(report, probabilities, labels):
  loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
  assert report['loss'] == pytest.approx(loss, rel=1e-4)
  is_right = probabilities.argmax(1) == labels
  assert report['top1'] == pytest.approx(is_right.mean())


def test_ten_views_are_the_mean_of_ten(run, restored, tmp_path):
  run('--views=ten', f'--output={tmp_path}/ten')
  report = json.loads((tmp_path / 'ten.json').read_text())
  state, there = restored
  count = len(there.eval_reader.source)
  reader = dataclasses.replace(
    there.eval_reader,
    transform=EvalTransform(size=20, resize_size=20),
    batch_size=count,
    row_count=count,
  )
  batch, views = reader(0), []
  for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
    crops = batch['image'][:, top : top + 16, left : left + 16]
    views += [crops, crops[:, :, ::-1]]
  check(report, mean_of(views, state.variables, there.task), batch['label'])


def test_scales_are_the_mean_of_sizes_and_mirror_images(
  run, restored, tmp_path
):
  run('--views=scales', '--scales=12,21', f'--output={tmp_path}/scales')
  report = json.loads((tmp_path / 'scales.json').read_text())
  state, there = restored
  source = there.eval_reader.source
  records = source.read(range(len(source)))
  views = []
  for side in (12, 21):
    squares = np.stack(
      [resize_and_center_crop(r['image'], side, side) for r in records]
    )
    views += [squares, squares[:, :, ::-1]]
  labels = np.array([record['label'] for record in records])
  check(report, mean_of(views, state.variables, there.task), labels)
  assert report['scales'] == [12, 21]


@pytest.mark.parametrize('ema', [False, True])
def test_recomputed_statistics_are_evaluated_beside_the_running_ones(
  run, workdir, restored, tmp_path, ema
):
  out = run(
    '--precise_bn=65',
    f'--output={tmp_path}/precise',
    *(['--ema'] if ema else []),
  )
  report = json.loads((tmp_path / 'precise.json').read_text())
  theirs, which = last_evaluation(workdir), 'eval_ema' if ema else 'eval'
  precise = report['precise_bn']
  assert precise['num_images'] == 128 and 'of 128 training images' in out
  running = precise['running_statistics']
  assert running['loss'] == pytest.approx(theirs[f'{which}/loss'], rel=1e-4)
  assert report['loss'] != pytest.approx(running['loss'], rel=1e-4)
  state, there = restored
  variables = precise_bn.recompute(
    there, state.ema if ema else state.variables, 65
  )
  whole = dataclasses.replace(there.eval_reader, batch_size=100, row_count=100)(
    0
  )
  found = mean_of([whole['image']], variables, there.task)
  check(report, found, whole['label'])
  change = report['top1'] - running['top1']
  assert f'top-1 {change:+.4f} (the running ones: {running["top1"]:.4f})' in out


def test_the_scales_are_those_of_the_paper():
  assert paper_sides(224) == (224, 256, 384, 480, 640)
  assert paper_sides(16) == (16, 18, 27, 34, 46)


def test_squares_are_cut_of_oblong_images():
  image = smooth_image(30, 40)
  transform = ScalesTransform(sides=(20, 45))
  packed = transform(image, transform.box(30, 40, ()), ())
  views = cut_scales(packed[None], (20, 45))
  for view, mirrored, side in zip(views[:2], views[2:], (20, 45), strict=True):
    expected = resize_and_center_crop(image, side, side)
    assert expected.shape == (side, side, 3)
    np.testing.assert_array_equal(view[0], expected)
    np.testing.assert_array_equal(mirrored[0], expected[:, ::-1])


def test_bad_values_are_named(run, capsys):
  for args, message in (
    (['--views=five'], 'invalid choice'),
    (['--output=/proc/report'], 'cannot be written'),
    (['--precise_bn=0'], '--precise_bn=0 is not in 1 .. 512'),
    (['--precise_bn=some'], 'invalid int value'),
    (['--on='], '--on= is no data set: leave it out, or type --on='),
    (['--on= '], '--on= is no data set'),
    (['--split='], '--split and --data_dir are for --on'),
    (['--data_dir='], '--split and --data_dir are for --on'),
    (['--scales=224'], '--scales is for --views=scales'),
    (['--views=scales', '--scales=0,224'], '--scales=0,224 are not'),
    (['--views=scales', '--scales=224,big'], '--scales=224,big are not'),
  ):
    with pytest.raises(SystemExit) as exit_:
      run(*args)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_output_that_is_no_file_is_refused(
  run, capsys, tmp_path, monkeypatch
):
  # Neither evaluated nor written.
  monkeypatch.setattr(evaluate, 'open_state', None)
  there = tmp_path / 'there'
  there.mkdir()
  for output, message in (
    ('', '--output= names no file: leave it out, or type --output=report'),
    (there, f'--output={there} is a folder, .* --output={there}/report'),
    (f'{there}/', f'--output={there}/ is a folder'),
    (f'{tmp_path}/new/', f'--output={tmp_path}/new/ is a folder'),
  ):
    with pytest.raises(SystemExit) as exit_:
      run(f'--output={output}')
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
  assert [path.name for path in tmp_path.rglob('*')] == ['there']
