"""The predict tool, on a network for digits."""

import dataclasses
import json
import os

import cv2
import numpy as np
import pytest

from resnet import weights
from resnet.data.host.warnings import DataWarnings
from resnet.data.sources import registry
from resnet.evaluation.evaluate import evaluate
from resnet.run.initialize import open_state
from resnet.training.step import jit_steps
from tests.networks import draw_variables, save_random
from tests.programs import assert_refused
from tests.runs import resolve, save_run

FIELDS = {'data.name': 'digits', 'data.image_size': 8, 'data.eval_resize': 8}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run on digits, untrained."""
  folder = tmp_path_factory.mktemp('digits')
  _, variables = draw_variables(
    'cifar_resnet8', size=8, num_classes=10, channels=1
  )
  save_run(folder, resolve(**FIELDS), variables)
  return str(folder)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """The test images as PNG files in ten folders, and their labels by path."""
  folder = tmp_path_factory.mktemp('pictures')
  source = registry.open_source('digits', 'test')
  labels = {}
  for index, record in enumerate(source.read(range(len(source)))):
    path = folder / f'{index % 10}' / f'{index:04}.png'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(record['image'])
    labels[str(path)] = int(record['label'])
  return folder, labels


@pytest.fixture
def predict(tool, workdir):
  """(*args) -> what the tool prints."""

  def run(*args):
    result = tool('predict', f'--weights={workdir}', *args)
    assert result.returncode == 0, result.stderr
    return result.stdout

  return run


@pytest.fixture
def classes(predict):
  """(*args) -> the classes of each file, likeliest first."""

  def run(*args):
    lines = map(json.loads, predict('--json', *args).splitlines())
    return {line['file']: line['classes'] for line in lines}

  return run


def test_accuracy_is_that_of_the_evaluation_to_the_last_image(
  classes, workdir, pictures
):
  folder, labels = pictures
  _, state, run = open_state(resolve(**FIELDS), workdir, 'best')
  steps = jit_steps(run.task, run.sharding)
  metrics = evaluate(run, steps, state, DataWarnings(None))
  lines = classes(folder)
  assert lines.keys() == labels.keys() and len(labels) == 360
  for rank in (1, 5):
    hits = sum(
      labels[file] in [c['index'] for c in ranked[:rank]]
      for file, ranked in lines.items()
    )
    assert hits == round(360 * metrics[f'eval/top{rank}'])
  # Random weights tell digits apart, though they do not know their names.
  assert len({ranked[0]['index'] for ranked in lines.values()}) >= 4


def read_features(path):
  """Returns the file names, and the features [N, ...]."""
  with np.load(path, allow_pickle=False) as file:
    return file['files'].tolist(), file['features']


@pytest.mark.parametrize(
  ('name', 'shape'), [('stage3', (2, 2, 64)), ('pooled', (64,))]
)
def test_features_are_those_of_the_network(
  predict, classes, workdir, pictures, tmp_path, name, shape
):
  folder, labels = pictures
  path = tmp_path / 'features.npz'
  output = (f'--features={name}', f'--out={path}')
  assert predict(folder / '4', *output, '--batch-size=10') == ''
  files, features = read_features(path)
  assert files == sorted(f for f in labels if f'{os.sep}4{os.sep}' in f)
  assert features.shape == (36, *shape)
  pooled = features.mean((1, 2)) if name == 'stage3' else features
  variables = weights.load_weights(workdir, 'cifar_resnet8')
  head = variables['params']['head']
  logits = pooled @ head['kernel'] + head['bias']
  likeliest = [line[0]['index'] for line in classes(folder / '4').values()]
  assert likeliest == logits.argmax(1).tolist()
  assert os.listdir(tmp_path) == [path.name]


def test_a_backbone_gives_features_alone(tool, pictures, tmp_path):
  folder, _ = pictures
  source = save_random(tmp_path / 'whole', size=8, class_names=('a', 'b'))
  state = weights.load_weights(source, 'cifar_resnet8')
  del state['params']['head']
  path = tmp_path / 'backbone.safetensors'
  metadata = weights.open_stored(source).metadata
  metadata = dataclasses.replace(metadata, class_names=None)
  weights.save_weights(state, str(path), metadata=metadata)
  args = ('predict', folder / '4', '--features=pooled')
  outs = [tmp_path / f'{i}.npz' for i in range(2)]
  for out, file in zip(outs, (source, path), strict=True):
    result = tool(*args, f'--weights={file}', f'--out={out}')
    assert result.returncode == 0, result.stderr
  whole, backbone = (read_features(out)[1] for out in outs)
  np.testing.assert_array_equal(whole, backbone)
  result = tool('predict', folder / '4', f'--weights={path}')
  assert_refused(result, "has no output 'probabilities'")
  target = tmp_path / 'exported'
  result = tool(
    'export', '--format=stablehlo', f'--weights={path}', f'--out={target}'
  )
  assert_refused(result, 'has no head (fc.bias, fc.weight)')
  assert 'cifar_resnet8' in tool('weights', 'inspect', path).stdout
  copy = tmp_path / 'copy.safetensors'
  result = tool('weights', 'convert', path, copy)
  assert 'cifar_resnet8, 0 classes' in result.stdout


def test_explain_lays_maps_over_images(tool, workdir, pictures, tmp_path):
  folder, _ = pictures
  target = tmp_path / 'maps'
  args = (f'--weights={workdir}', f'--explain={target}', '--stage=stage2')
  result = tool('predict', folder / '5', folder / '6', *args)
  assert sorted(result.stderr.splitlines()) == sorted(
    f'wrote {path}' for path in target.rglob('*.png')
  )
  names = [p.relative_to(target) for p in target.rglob('*.png')]
  assert len(names) == 2 * 72
  picture = cv2.imread(str(target / '0005.png.cam.png'))
  assert picture.shape == (224, 224, 3)
  # A map has colours, and the image below it is seen through.
  assert np.ptp(picture.astype(int), axis=2).max() > 50
  other = cv2.imread(str(target / '0005.png.gradcam_stage2.png'))
  assert other.shape == picture.shape and np.any(other != picture)


def test_a_broken_image_is_named(tool, workdir, pictures, tmp_path):
  folder, _ = pictures
  good = min((folder / '6').iterdir())
  bad = tmp_path / 'bad.png'
  bad.write_bytes(good.read_bytes()[:40])
  for output in ([], ['--features=pooled', f'--out={tmp_path / "f.npz"}']):
    result = tool('predict', f'--weights={workdir}', good, bad, *output)
    assert_refused(result, f'{bad} cannot be decoded')
    assert os.listdir(tmp_path) == ['bad.png']


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['/no/where.png'], "no folder at '/no/where.png'"),
    (['{one}', '--flip', '--ten_crop'], 'not allowed with argument --flip'),
    (['{one}', '--features=stage9', '--out=x.npz'], "no output 'stage9'"),
    (['{one}', 'copy/{name}', '--explain=maps'], 'one by one'),
    (['{one}', '--model=resnet18'], 'holds weights of cifar_resnet8'),
  ],
)
def test_bad_input_is_refused_and_nothing_is_written(
  tool, workdir, pictures, tmp_path, monkeypatch, args, message
):
  folder, _ = pictures
  monkeypatch.chdir(tmp_path)
  one = min((folder / '7').iterdir())
  (tmp_path / 'copy').mkdir()
  (tmp_path / 'copy' / one.name).write_bytes(one.read_bytes())
  args = [arg.format(one=one, name=one.name) for arg in args]
  result = tool('predict', f'--weights={workdir}', *args)
  assert_refused(result, message)
  assert not result.stdout
  assert os.listdir(tmp_path) == ['copy']


def test_names_that_are_not_utf8_and_weights_that_are_nan(
  tool, pictures, tmp_path
):
  photo = tmp_path / os.fsdecode(b'\xff.png')
  photo.write_bytes(next((pictures[0] / '3').iterdir()).read_bytes())
  path = save_random(
    tmp_path / 'net.safetensors',
    size=8,
    class_names=('n01440764', 'b'),
    channels=1,
  )
  variables = weights.load_weights(path, 'cifar_resnet8')
  variables['params']['head']['bias'] = np.full(2, np.nan, np.float32)
  metadata = weights.open_stored(path).metadata
  weights.save_weights(variables, path, metadata=metadata)
  weights_ = f'--weights={path}'
  result = tool('predict', weights_, '--json', '--top=1', photo)
  assert 'not finite' in result.stderr
  line = json.loads(result.stdout, parse_constant=pytest.fail)
  assert line['file'].endswith('\\xff.png')
  tench = {'index': 0, 'name': 'tench', 'id': 'n01440764', 'probability': None}
  assert line['classes'] == [tench]
  result = tool('predict', weights_, '--top=1', photo)
  assert result.stdout.endswith('.png  tench nan\n')
  out = f'--out={tmp_path / "features.npz"}'
  result = tool('predict', weights_, '--features=pooled', out, photo)
  assert result.returncode == 0
