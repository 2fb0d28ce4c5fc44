"""The detailed evaluation on ImageNet-V2 and with the labels of ReaL."""

import json
import sys

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.tools import command, evaluate
from resnet.training import workdir as workdir_lib
from resnet.training.checkpoint import Checkpoints
from tests.data.imagenet_sets import validation_name, write_set

pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)

FIELDS = {
  'batch_size': 8,
  'data.name': 'imagenet2012',
  'data.eval_split': 'validation',
  'data.image_size': 8,
  'data.eval_resize': 8,
}
COUNT = 20


def draw_images(seed):
  rng = np.random.default_rng(seed)
  colors = rng.integers(0, 256, (COUNT, 1, 1, 3))
  noise = rng.integers(0, 256, (COUNT, 8, 8, 3))
  return ((colors + noise) // 2).astype(np.uint8)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(folder, predictions of images) of a network that was never trained.

  Half of the labels of each set are the predictions.
  """
  folder = tmp_path_factory.mktemp('imagenet')
  images = draw_images(0)
  examples = [
    {'image': image, 'label': 5, 'file_name': f'n_{i}.JPEG'}
    for i, image in enumerate(images)
  ]
  validation = [
    {**example, 'file_name': validation_name(i + 1)}
    for i, example in enumerate(examples)
  ]
  write_set(
    str(folder),
    'imagenet2012',
    {'train': examples, 'validation': validation},
  )
  config = fake.get_config()
  config.update_from_flattened_dict({**FIELDS, 'data.data_dir': str(folder)})
  run = experiment.resolve(config)
  state = run.create_state()
  workdir_lib.write_config(str(folder), run.config, run.derived())
  checkpoints = Checkpoints(str(folder), keep=1)
  checkpoints.save(state, None)
  checkpoints.close()

  @jax.jit
  def predict(images):
    images = run.task.normalize(images)
    return run.task.model.apply(state.variables, images, train=False).argmax(-1)

  predictions = np.asarray(predict(images))
  assert len(set(predictions.tolist())) >= 4
  labels = [int(p) if i % 2 else 5 for i, p in enumerate(predictions)]
  for name, split in (
    ('imagenet_v2/matched-frequency', 'test'),
    ('imagenet2012_real', 'validation'),
  ):
    key = 'label' if split == 'test' else 'original_label'
    rest = [{}] * COUNT
    if split == 'validation':
      rest = [{'real_label': real} for real in real_lists(predictions)]
    write_set(
      str(folder),
      name,
      {
        split: [
          {'image': x, key: y, 'file_name': validation_name(i + 1), **more}
          for i, (x, y, more) in enumerate(
            zip(images, labels, rest, strict=True)
          )
        ]
      },
    )
  return folder, predictions


def real_lists(predictions):
  """Labels of each file: none; the prediction; more beside it; another."""
  return [
    [[], [p], [0, p, 999], [(p + 1) % 1000]][i % 4]
    for i, p in enumerate(predictions.tolist())
  ]


@pytest.fixture
def run(monkeypatch, capsys, made, tmp_path):
  """(*args) -> what the tool prints, and its report."""
  folder, _ = made
  flags = [f'--config.{name}={value}' for name, value in FIELDS.items()]

  def run(*args):
    argv = ['evaluate', '--config=configs/fake.py', *flags, *args]
    argv += [f'--config.data.data_dir={folder}', f'--workdir={folder}']
    monkeypatch.setattr(sys, 'argv', [*argv, f'--output={tmp_path}/report'])
    command.run(evaluate.main, evaluate.parser())
    report = json.loads((tmp_path / 'report.json').read_text())
    return capsys.readouterr().out, report

  return run


def test_version_2_is_evaluated_like_the_run_s_own_images(run):
  out, report = run('--on=imagenet_v2/matched-frequency')
  assert report['images'] == 'imagenet_v2/matched-frequency/test'
  assert f'{COUNT} images of imagenet_v2/matched-frequency/test' in out
  # All predictions at odd places are right, and none of the others is 5.
  assert report['top1'] == 0.5 and 'real' not in report


def check_real(out, report):
  quarter = COUNT // 4
  assert report['num_examples'] == COUNT
  assert report['real'] == {
    'top1': pytest.approx(2 / 3),
    'num_images': 3 * quarter,
    'num_unlabelled': quarter,
  }
  assert 'ReaL top-1 0.6667  (15 images; 5 without labels are' in out


def test_real_json_is_found_by_file_name(run, made, tmp_path):
  _, predictions = made
  labels = real_lists(predictions) + [[1]] * (50_000 - COUNT)
  path = tmp_path / 'real.json'
  path.write_text(json.dumps(labels))
  out, report = run(f'--real_labels={path}')
  check_real(out, report)
  assert report['images'] == 'imagenet2012/validation'
  assert report['top1'] == np.mean(predictions == 5)


def test_the_tfds_set_brings_the_same_labels(run):
  out, report = run('--on=imagenet2012_real')
  check_real(out, report)
  assert report['top1'] == 0.5


def test_bad_values_are_named(run, capsys, tmp_path):
  (tmp_path / 'real.json').write_text('[[1], [2]]')
  for args, message in (
    (['--on=imagenet_v4'], "no data set 'imagenet_v4'"),
    (['--on=imagenet_v2/matched-frequency', '--split=train'], 'no split'),
    (['--on=imagenet_v2/topimages'], 'is not prepared in'),
    (['--on=fake', '--split=test'], 'fake/test has 10 classes'),
    (['--split=test'], '--split and --data_dir are for --on'),
    ([f'--real_labels={tmp_path}/real.json'], 'has 2 lists of labels'),
    ([f'--real_labels={tmp_path}/none.json'], 'cannot be read'),
  ):
    with pytest.raises(SystemExit) as exit_:
      run(*args)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1
