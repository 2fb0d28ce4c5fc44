"""The predict tool, on a network that was trained on digits."""

import json
import os
import pathlib
import re
import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import digits, fashion_mnist
from resnet import experiment
from resnet.data import datasets
from resnet.models import weights
from resnet.tools import command, predict, prepare
from resnet.training import evaluate
from resnet.training import run as run_lib

FASHION_MNIST = pathlib.Path('/usr/share/datasets/fashion-mnist')


def make_config():
  """A run of two epochs: neither all right nor all wrong."""
  config = digits.get_config()
  config.model.name = 'cifar_resnet8'
  config.num_epochs = 2.0
  config.schedule.warmup_epochs = 1.0
  config.log_every_steps = 5
  return config


def train(config, workdir):
  run = experiment.resolve(config)
  assert run_lib.run(run, str(workdir), start_time=0.0) == 0
  return str(workdir)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return train(make_config(), tmp_path_factory.mktemp('predict') / 'digits')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pictures')
  return folder, write_pictures(folder, datasets.open_source('digits', 'test'))


def write_pictures(folder, source):
  """Writes PNG files, in ten folders; returns their labels by path."""
  labels = {}
  for index in range(len(source)):
    (record,) = source.read([index])
    path = folder / f'{index % 10}' / f'{index:04}.png'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(record['image'])
    labels[str(path)] = int(record['label'])
  return labels


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> what the tool prints; raises SystemExit for bad input."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['predict', *map(str, args)])
    command.run(predict.main, predict.parser())
    return capsys.readouterr().out

  return run


def classes(out):
  return {
    line['file']: line['classes'] for line in map(json.loads, out.splitlines())
  }


def check_accuracy(run, config, workdir, folder, labels, capsys):
  """Compares `predict` with --mode=eval, to the last image."""
  capsys.readouterr()
  evaluate.run(experiment.resolve(config), workdir, 'best')
  found = re.search(r'top1 (\S+)  top5 (\S+)', capsys.readouterr().out)
  lines = classes(run(f'--weights={workdir}', folder, '--json'))
  assert lines.keys() == labels.keys()
  for rank, top in ((1, found[1]), (5, found[2])):
    hits = sum(
      labels[file] in [c['index'] for c in ranked[:rank]]
      for file, ranked in lines.items()
    )
    # Of 10,000 images or less, four places tell one from another.
    assert f'{hits / len(labels):.4f}' == top
  assert 0.3 < float(found[1]) < 1


def test_accuracy_is_that_of_evaluation_to_the_last_image(
  run, workdir, pictures, capsys
):
  folder, labels = pictures
  assert len(labels) == 360
  check_accuracy(run, make_config(), workdir, folder, labels, capsys)


@pytest.mark.slow
@pytest.mark.skipif(
  not FASHION_MNIST.is_dir(), reason="no dataset-fashion-mnist of Debian's"
)
def test_and_so_it_is_on_fashion_mnist(run, tmp_path, monkeypatch, capsys):
  data_dir = str(tmp_path / 'data')
  args = ['--from=idx', f'--source={FASHION_MNIST}', f'--out={data_dir}']
  monkeypatch.setattr(sys, 'argv', ['prepare', *args, '--name=fashion_mnist'])
  command.run(prepare.main, prepare.parser())
  config = fashion_mnist.get_config('resnet8')
  config.num_epochs = 2.0
  config.data.data_dir = data_dir
  config.data.train_split = 'train[:2560]'
  workdir = train(config, tmp_path / 'fashion_mnist')
  folder = tmp_path / 'pictures'
  folder.mkdir()
  labels = write_pictures(
    folder, datasets.open_source('fashion_mnist', 'test', data_dir=data_dir)
  )
  assert len(labels) == 10_000
  check_accuracy(run, config, workdir, folder, labels, capsys)


def test_a_line_an_image_likeliest_first(run, workdir, pictures):
  folder, _ = pictures
  one = str(next((folder / '3').iterdir()))
  out = run(f'--weights={workdir}', one, '--top=3')
  name, *ranked = out.rstrip().split('  ')
  assert name == one
  numbers = [float(text.split()[1]) for text in ranked]
  assert len(numbers) == 3 and numbers == sorted(numbers, reverse=True)
  (full,) = classes(run(f'--weights={workdir}', one, '--top=99', '--json'))
  assert full == one
  everything = classes(run(f'--weights={workdir}', one, '--top=99', '--json'))[
    one
  ]
  assert sum(c['probability'] for c in everything) == pytest.approx(1, abs=1e-5)
  assert [c['name'] for c in everything[:3]] == [t.split()[0] for t in ranked]


def test_any_batch_size_gives_the_same(run, workdir, pictures):
  folder, _ = pictures
  for extra in ([], ['--flip'], ['--ten_crop']):
    a, b = (
      classes(
        run(
          f'--weights={workdir}',
          folder / '1',
          '--json',
          '--top=10',
          f'--batch-size={size}',
          *extra,
        )
      )
      for size in (7, 32)
    )
    for file, ranked in a.items():
      theirs = {c['index']: c['probability'] for c in b[file]}
      for c in ranked:
        assert c['probability'] == pytest.approx(theirs[c['index']], abs=1e-6)


def test_flip_is_the_mean_with_the_mirror_image(
  run, workdir, pictures, tmp_path
):
  folder, _ = pictures
  one = sorted((folder / '2').iterdir())[0]
  pixels = cv2.imread(str(one), cv2.IMREAD_GRAYSCALE)
  mirrored = tmp_path / 'mirrored.png'
  cv2.imwrite(str(mirrored), pixels[:, ::-1])
  shared = [f'--weights={workdir}', '--json', '--top=10']
  alone = classes(run(*shared, one, mirrored))
  (both,) = classes(run(*shared, one, '--flip')).values()
  by_index = [
    {c['index']: c['probability'] for c in ranked} for ranked in alone.values()
  ]
  for c in both:
    mean = np.mean([row[c['index']] for row in by_index])
    assert c['probability'] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize('suffix', ['npz', 'parquet'])
@pytest.mark.parametrize(('name', 'shape'), [('pooled', 64), ('stage3', 256)])
def test_features_are_those_of_the_network(
  run, workdir, pictures, tmp_path, suffix, name, shape
):
  folder, labels = pictures
  path = tmp_path / f'features.{suffix}'
  out = run(
    f'--weights={workdir}',
    folder / '4',
    f'--features={name}',
    f'--out={path}',
    '--batch-size=10',
  )
  assert out == ''
  if suffix == 'npz':
    with np.load(path, allow_pickle=False) as file:
      files, features = file['files'].tolist(), file['features']
  else:
    table = pq.read_table(path)
    files = table['file'].to_pylist()
    features = np.array(table['features'].to_pylist(), np.float32)
    dims = table.schema.metadata[b'shape'].decode()
    features = features.reshape(-1, *map(int, dims.split(',')))
  assert files == sorted(f for f in labels if f'{os.sep}4{os.sep}' in f)
  assert features.shape[0] == 36 and features[0].size == shape
  if name == 'pooled':
    variables = weights.load_weights(workdir, 'cifar_resnet8')
    head = variables['params']['head']
    logits = features @ head['kernel'] + head['bias']
    lines = classes(run(f'--weights={workdir}', folder / '4', '--json'))
    assert [line[0]['index'] for line in lines.values()] == (
      logits.argmax(1).tolist()
    )
  assert os.listdir(tmp_path) == [path.name]


def test_explain_lays_maps_over_images(run, workdir, pictures, tmp_path):
  folder, _ = pictures
  target = tmp_path / 'maps'
  run(f'--weights={workdir}', folder, f'--explain={target}', '--stage=stage2')
  names = [p.relative_to(target) for p in target.rglob('*.png')]
  assert len(names) == 2 * 360
  picture = cv2.imread(str(target / '5' / '0005.png.cam.png'))
  assert picture.shape == (224, 224, 3)
  # A map has colours, and the image below it is seen through.
  assert np.ptp(picture.astype(int), axis=2).max() > 50
  other = cv2.imread(str(target / '5' / '0005.png.gradcam_stage2.png'))
  assert other.shape == picture.shape and np.any(other != picture)


def test_broken_images_are_named(run, workdir, pictures, tmp_path, capsys):
  folder, _ = pictures
  good = sorted((folder / '6').iterdir())[0]
  bad = tmp_path / 'bad.png'
  bad.write_bytes(good.read_bytes()[:40])
  features = tmp_path / 'f.npz'
  for extra in ([], ['--features=pooled', f'--out={features}']):
    with pytest.raises(SystemExit) as error:
      run(f'--weights={workdir}', good, bad, *extra)
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f'{bad} cannot be decoded' in err
    assert os.listdir(tmp_path) == ['bad.png']
  out = run(f'--weights={workdir}', bad, good, '--on-bad-image=skip', '--json')
  assert list(classes(out)) == [str(good)]


def test_too_many_pixels_are_refused_from_the_header(
  run, workdir, pictures, tmp_path, capsys
):
  folder, _ = pictures
  data = bytearray(sorted((folder / '6').iterdir())[0].read_bytes())
  data[16:24] = (100_000).to_bytes(4) * 2  # Width and height of a PNG.
  huge = tmp_path / 'huge.png'
  huge.write_bytes(data)
  with pytest.raises(SystemExit) as error:
    run(f'--weights={workdir}', huge)
  assert error.value.code == 2
  assert 'the header claims 100000 x 100000' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['/no/where.png'], "no folder at '/no/where.png'"),
    (['{empty}'], 'holds no image'),
    (['{one}', '--top=0'], '--top=0 must be positive'),
    (['{one}', '--flip', '--ten_crop'], 'leave --flip out'),
    (['{one}', '--features=pooled'], '--out=FILE.npz'),
    (['{one}', '--features=pooled', '--out=x.pkl'], '.npz or .parquet'),
    (['{one}', '--features=stage9', '--out=x.npz'], "no 'stage9'"),
    (['{one}', '--explain=maps', '--stage=stage9'], "no 'gradcam_stage9'"),
    (['{one}', '--stage=stage1'], 'needs --explain'),
    (['{one}', '{one2}', '--explain=maps'], 'one by one'),
    (['{one}', '--model=resnet18'], 'holds weights of cifar_resnet8'),
    (['{one}', '--weights=/no/where'], 'no weights at'),
    (['https://example.com/a.png'], 'no folder at'),
  ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_file(
  run, workdir, pictures, capsys, tmp_path, monkeypatch, args, message
):
  folder, _ = pictures
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  one = sorted((folder / '7').iterdir())[0]
  (tmp_path / one.name).write_bytes(one.read_bytes())
  names = {'one': one, 'one2': tmp_path / one.name, 'empty': 'empty'}
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(SystemExit) as error:
    run(f'--weights={workdir}', *(arg.format(**names) for arg in args))
  assert error.value.code == 2
  out, err = capsys.readouterr()
  assert not out
  assert len(err.splitlines()) == 1
  assert message in err
  assert sorted(os.listdir(tmp_path)) == before


def test_weights_that_do_not_say_enough_are_refused(
  run, workdir, pictures, tmp_path, capsys
):
  folder, _ = pictures
  path = str(tmp_path / 'bare.safetensors')
  weights.save_weights(weights.load_weights(workdir, 'cifar_resnet8'), path)
  for extra, message in (
    ([], 'give --model'),
    (['--model=cifar_resnet8'], 'weights convert'),
  ):
    with pytest.raises(SystemExit):
      run(f'--weights={path}', folder, *extra)
    assert message in capsys.readouterr().err
