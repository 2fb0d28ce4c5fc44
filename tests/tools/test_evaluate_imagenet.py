"""The detailed evaluation on other images, and with the labels of ReaL."""

import functools
import json
import re

import jax
import numpy as np
import pytest

from tests.data.imagenet_sets import validation_name, write_set
from tests.networks import draw_variables
from tests.runs import resolve, save_run

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
COUNT, V2 = 20, 'imagenet_v2/topimages'


def draw_images():
  rng = np.random.default_rng(0)
  colors = rng.integers(0, 256, (COUNT, 1, 1, 3))
  noise = rng.integers(0, 256, (COUNT, 8, 8, 3))
  return ((colors + noise) // 2).astype(np.uint8)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder, and lists of labels as ReaL has them, by file.

  The folder holds the checkpoint of a network that was never trained; the set
  imagenet2012, whose labels are all 5; and a set imagenet_v2, whose labels are
  the predictions at odd places.
  """
  folder = str(tmp_path_factory.mktemp('imagenet'))
  images = draw_images()
  examples = [
    {'image': image, 'file_name': validation_name(i + 1)}
    for i, image in enumerate(images)
  ]
  labelled = [{**example, 'label': 5} for example in examples]
  splits = {'train': labelled, 'validation': labelled}
  write_set(folder, 'imagenet2012', splits)
  run = resolve(**FIELDS, data__data_dir=folder)
  model, variables = draw_variables('cifar_resnet8', size=8, num_classes=1000)
  save_run(folder, run, variables)
  logits = jax.jit(functools.partial(model.apply, train=False))(
    variables, run.task.normalize(images)
  )
  predictions = logits.argmax(-1).tolist()
  assert len(set(predictions)) >= 4 and 5 not in predictions
  # None; the prediction; more beside it; another.
  lists = [
    [[], [p], [0, p, 999], [(p + 1) % 1000]][i % 4]
    for i, p in enumerate(predictions)
  ]
  other = [
    {**example, 'label': p if i % 2 else 5}
    for i, (example, p) in enumerate(zip(examples, predictions, strict=True))
  ]
  write_set(folder, V2, {'test': other})
  return folder, lists


@pytest.fixture
def evaluate(tool, made, tmp_path):
  """(*args) -> what the tool prints, and its report."""
  folder, _ = made
  flags = [f'--config.{name}={value}' for name, value in FIELDS.items()]
  flags += [f'--config.data.data_dir={folder}', f'--workdir={folder}']
  flags += [f'--output={tmp_path}/report']

  def evaluate(*args):
    result = tool('evaluate', '--config=configs/fake.py', *flags, *args)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads((tmp_path / 'report.json').read_text())

  return evaluate


def test_labels_of_real_json_are_found_by_file_name(evaluate, made, tmp_path):
  _, lists = made
  path = tmp_path / 'real.json'
  path.write_text(json.dumps(lists + [[1]] * (50_000 - COUNT)))
  out, report = evaluate(f'--real_labels={path}')
  assert report['num_examples'] == COUNT
  assert report['real'] == {
    'top1': pytest.approx(2 / 3),
    'num_images': 15,
    'num_unlabelled': 5,
  }
  assert 'ReaL top-1 0.6667  (15 images; 5 without labels' in out
  assert report['images'] == 'imagenet2012/validation'
  assert report['top1'] == 0
  # Label 5.
  assert re.search(r'^  electric ray: .* taken for (?!n\d{8})', out, re.M)


def test_another_set_is_evaluated_with_its_own_labels(evaluate):
  _, report = evaluate(f'--on={V2}')
  assert report['images'] == f'{V2}/test'
  assert report['top1'] == 0.5
