"""The detailed evaluation: its numbers are those of a run's own."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from resnet.data.host.transforms import (
  EvalTransform,
  ViewsTransform,
  resize_and_center_crop,
)
from resnet.data.host.warnings import DataWarnings
from resnet.evaluation import precise_bn
from resnet.evaluation.evaluate import evaluate
from resnet.evaluation.views import unpack
from resnet.training.step import jit_steps
from tests.data.in_memory import smooth_image
from tests.networks import draw_variables
from tests.programs import assert_refused
from tests.runs import resolve, save_run

pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)

FIELDS = {
  'batch_size': 64,
  'ema_decay': 0.9,
  'data.eval_resize': 20,
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Workdir, experiment and state of a run."""
  folder = tmp_path_factory.mktemp('evaluate')
  run = resolve(**FIELDS)
  _, variables = draw_variables('cifar_resnet8', size=16, num_classes=10)
  ema = jax.tree.map(lambda x: np.float32(0.9) * x, variables)
  return folder, run, save_run(folder, run, variables, ema)


@pytest.fixture(scope='module')
def metrics(made):
  """The run's own evaluation."""
  _, run, state = made
  return evaluate(
    run, jit_steps(run.task, run.sharding), state, DataWarnings(None)
  )


@pytest.fixture
def run_tool(tool, made, tmp_path):
  """(*args) -> what the tool prints, and its report."""
  flags = [f'--config.{name}={value}' for name, value in FIELDS.items()]
  flags += [f'--workdir={made[0]}', f'--output={tmp_path}/report']

  def run(*args):
    result = tool('evaluate', '--config=configs/fake.py', *flags, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads((tmp_path / 'report.json').read_text())

  return run


def assert_metrics(report, metrics, prefix):
  assert report['num_examples'] == metrics['eval/num_examples']
  for name in ('loss', 'top1', 'top5'):
    expected = pytest.approx(metrics[f'{prefix}/{name}'], rel=1e-4)
    assert report[name] == expected


def test_one_view_gives_the_evaluation_of_the_run(
  run_tool, made, metrics, tmp_path
):
  out, report = run_tool(f'--workdir={made[0]}#raw')
  assert (report['weights'], report['step']) == ('raw', int(made[2].step))
  assert out.startswith('Reading the ') and f'step {report["step"]}.' in out
  assert_metrics(report, metrics, 'eval')
  out, report = run_tool()
  assert report['weights'] == 'moving averages' and 'averages' in out
  assert_metrics(report, metrics, 'eval_ema')
  confusion = np.loadtxt(tmp_path / 'report.csv', delimiter=',')
  assert confusion.shape == (10, 10)
  assert confusion.sum() == report['num_examples']
  assert np.trace(confusion) / confusion.sum() == pytest.approx(report['top1'])
  assert 0 <= report['ece'] <= 1 and 'calibration error' in out
  assert len(report['worst_classes']) == 5 and 'real' not in report
  assert (tmp_path / 'report.png').read_bytes().startswith(b'\x89PNG')


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


def read_all(reader, **changes):
  """Returns the images of a reader as one batch."""
  count = len(reader.source)
  return dataclasses.replace(
    reader, batch_size=count, row_count=count, **changes
  )(0)


def test_ten_views_are_the_mean_of_corners_centre_and_mirror_images(
  run_tool, made
):
  _, report = run_tool('--views=ten_crop')
  _, run, state = made
  transform = EvalTransform(size=20, resize_size=20)
  batch, views = read_all(run.eval_reader, transform=transform), []
  for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
    crops = batch['image'][:, top : top + 16, left : left + 16]
    views += [crops, crops[:, :, ::-1]]
  check(report, mean_of(views, state.ema, run.task), batch['label'])


def test_scales_are_the_mean_of_sizes_and_mirror_images(run_tool, made):
  _, report = run_tool('--views=scales', '--scales=12,21')
  _, run, state = made
  source = run.eval_reader.source
  records = source.read(range(len(source)))
  views = []
  for side in (12, 21):
    squares = np.stack(
      [resize_and_center_crop(r['image'], side, side) for r in records]
    )
    views += [squares, squares[:, :, ::-1]]
  labels = np.array([record['label'] for record in records])
  check(report, mean_of(views, state.ema, run.task), labels)
  assert report['scales'] == [12, 21]


def test_scales_are_squares_of_oblong_images():
  image = smooth_image(30, 40)
  transform = ViewsTransform(sides=(20, 45))
  packed = transform(image, transform.box(30, 40, ()), ())
  for view, side in zip(unpack(packed[None], (20, 45)), (20, 45), strict=True):
    expected = resize_and_center_crop(image, side, side)
    assert expected.shape == (side, side, 3)
    np.testing.assert_array_equal(view[0], expected)


def test_precise_bn_is_compared_with_running_statistics(
  run_tool, metrics, made
):
  out, report = run_tool('--precise_bn=65')
  precise = report['precise_bn']
  assert precise['num_images'] == 128 and 'of 128 training images' in out
  running = precise['running_statistics']
  assert_metrics(running, metrics, 'eval_ema')
  assert report['loss'] != pytest.approx(running['loss'], rel=1e-4)
  _, run, state = made
  ema = jax.device_put(state.ema, run.sharding.replicated)
  variables = precise_bn.recompute(run, ema, 65)
  batch = read_all(run.eval_reader)
  check(report, mean_of([batch['image']], variables, run.task), batch['label'])
  change = report['top1'] - running['top1']
  assert (
    f'top-1 {change:+.4f} (running statistics: {running["top1"]:.4f})' in out
  )


def test_bad_values_are_refused_before_anything_is_read(tool, tmp_path):
  for args, parts in (
    (['--precise_bn=0'], ['--precise_bn=0', '1 .. 512']),
    (['--split=test'], ['--split', '--on']),
    (['--scales=224'], ['--scales', '--views=scales']),
    (['--views=scales', '--scales=224,big'], ['--scales=224,big', 'type']),
    (['--views=scales', '--scales=0,224'], ['--scales=0,224', 'type']),
    ([f'--output={tmp_path}'], [f'type --output={tmp_path}/report']),
    (['--output=/proc/report'], ['--output=/proc/report cannot be written']),
  ):
    # A workdir that is not there would be refused next.
    flags = ('--config=configs/fake.py', '--workdir=/no/where')
    assert_refused(tool('evaluate', *flags, *args), *parts)
  assert list(tmp_path.iterdir()) == []
