"""The command line, as a person meets it: mostly in processes of its own."""

import json
import pathlib
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from resnet import config_flag
from resnet.errors import InputError
from tests.programs import environment

ROOT = pathlib.Path(__file__).parent.parent
# ml_collections loads config files in a way that Python 3.12 has no more.
LOADS_A_CONFIG = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)
SMALL = (
  '--config=configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
)


def command(*args):
  return [sys.executable, 'main.py', *map(str, args)]


def main(*args, data_dir, devices=1):
  return subprocess.run(
    command(*args),
    cwd=ROOT,
    env=environment(devices=devices, TFDS_DATA_DIR=data_dir),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def assert_refused(result, *parts):
  """Exit code 2, and one line on stderr that has all the parts."""
  assert result.returncode == 2, result.stderr
  assert len(result.stderr.splitlines()) == 1, result.stderr
  assert 'Traceback' not in result.stderr
  for part in parts:
    assert part in result.stderr


@pytest.fixture(scope='module')
def done(tmp_path_factory, data_dir):
  """A finished run and what it printed."""
  workdir = tmp_path_factory.mktemp('main') / 'run'
  result = main(*SMALL, f'--workdir={workdir}', data_dir=data_dir)
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_a_run_shows_progress_and_ends_with_a_table(done):
  workdir, result = done
  assert result.stderr == ''
  lines = result.stdout.splitlines()
  assert lines[0].startswith('Training cifar_resnet8 on fake (512 train')
  assert 'First step done' in lines[1]
  assert any(
    line.startswith('step 8/16') and 'images/s' in line for line in lines
  )
  table = dict(line.split('  ', 1) for line in map(str.strip, lines[-7:]))
  names = ['steps', 'eval top-1', 'eval top-5', 'eval loss', 'images/s']
  assert list(table) == [*names, 'wall time', 'files']
  assert table['files'].strip() == str(workdir)
  last = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert float(table['eval top-1']) == pytest.approx(
    last['eval/top1'], abs=1e-4
  )


def test_the_same_command_says_that_the_run_is_complete(done, data_dir):
  workdir, _ = done
  result = main(*SMALL, f'--workdir={workdir}', data_dir=data_dir)
  assert result.returncode == 0
  assert 'complete: nothing to do' in result.stdout
  assert 'eval top-1' in result.stdout


@pytest.mark.parametrize('which', ['best', 'latest'])
def test_evaluation_of_a_checkpoint_equals_that_of_the_run(
  done, data_dir, which
):
  workdir, trained = done
  result = main(
    *SMALL,
    f'--workdir={workdir}',
    '--mode=eval',
    f'--checkpoint={which}',
    data_dir=data_dir,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() in trained.stdout


def test_evaluation_may_use_another_batch_size_and_devices(done, data_dir):
  workdir, _ = done
  result = main(
    *SMALL,
    f'--workdir={workdir}',
    '--mode=eval',
    '--config.batch_size=24',
    data_dir=data_dir,
    devices=8,
  )
  assert result.returncode == 0, result.stderr
  assert '(100 images)' in result.stdout


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, data_dir):
  args = [*SMALL, f'--workdir={tmp_path / "run"}']
  args += ['--config.num_epochs=500', '--config.eval_every_epochs=500']
  with subprocess.Popen(
    command(*args),
    cwd=ROOT,
    env=environment(TFDS_DATA_DIR=data_dir),
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    for line in process.stdout:
      if line.startswith('step'):
        process.send_signal(signal.SIGTERM)
        break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 143
  assert 'Stopped by SIGTERM after step' in rest
  step = int(rest.split('after step ')[1].split(' of')[0])
  assert (tmp_path / 'run' / 'checkpoints' / str(step)).is_dir()
  with subprocess.Popen(
    command(*args),
    cwd=ROOT,
    env=environment(TFDS_DATA_DIR=data_dir),
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    first = process.stdout.readline()
    assert 'Continuing cifar_resnet8 on fake' in first
    assert f'steps {step + 1} to 4000' in first
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=60) == 130


@pytest.mark.parametrize(
  ('args', 'parts'),
  [
    (['--config.modle.name=x'], ['modle', 'model']),
    (['--config.batch_sise=3'], ['batch_sise', 'batch_size']),
    (['--config.batch_size=many'], ['batch_size', 'many']),
    (['--config=configs/nothing.py'], ['configs/nothing.py']),
    (['--config=configs/digits.py:x'], ['digits.py:x: this config takes']),
    (['--nonsense=1'], ['nonsense']),
    (['train'], ["'train' is not a flag"]),
    (['--mode=test'], ['train|eval']),
    (['--config=configs/cifar10.py:resnet21'], ['cifar10']),
    (
      ['--config=configs/resnet50_timm.py:a4'],
      ["'a4'", 'There are: a1, a2, a3.'],
    ),
    ([*SMALL, '--config.model.name=resnet51'], ['resnet51', 'resnet50']),
    ([*SMALL, '--config.batch_size=0'], ['batch_size=0']),
    ([*SMALL, '--config.batch_size=-64'], ['batch_size=-64']),
    ([*SMALL, '--config.batch_size=63'], ['63', '8 devices', '56 or 64']),
    ([*SMALL, '--config.data.name=cifar11'], ['cifar11', 'cifar10']),
    (
      ['--config.data.name=cifar10'],
      [
        "tfds.builder('cifar10'",
        "file_format='array_record').download_and_prepare()",
        'tensorflow-cpu',
      ],
    ),
    ([*SMALL, '--config.model.num_classes=3'], ['num_classes=10']),
    ([*SMALL, '--mode=eval'], ['holds no run']),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(
  tmp_path, data_dir, args, parts
):
  workdir = tmp_path / 'run'
  result = main(*args, f'--workdir={workdir}', data_dir=data_dir, devices=8)
  assert_refused(result, *parts)
  assert result.stdout == ''
  assert not workdir.exists()


def explained(config):
  """Returns what --config=CONFIG is refused with; all tools ask for this."""
  with pytest.raises(InputError) as error:
    config_flag.read(['main.py', f'--config={config}'])
  return ' '.join(str(error.value).split())


@LOADS_A_CONFIG
@pytest.mark.parametrize('name', ['resnetrs50', 'resnet50_torchvision_v2'])
def test_a_config_that_takes_no_argument_says_what_to_type(name):
  path = f'{ROOT}/configs/{name}.py'
  assert explained(f'{path}:a:b') == (
    f'--config={path}:a:b: this config takes nothing after the colon: type'
    f' --config={path}'
  )


@LOADS_A_CONFIG
def test_a_call_in_the_config_file_is_not_that_of_the_config(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(
    'from configs import default\n'
    'def get_config(net):\n'
    '  return default.get_config(net)\n'
  )
  assert 'takes nothing' not in explained(f'{path}:a')
  assert 'TypeError: get_config() takes 0' in explained(f'{path}:a')


@LOADS_A_CONFIG
def test_an_error_of_ours_in_a_config_file_is_all_that_is_said(tmp_path):
  assert explained(f'{ROOT}/configs/ffcv.py:nonsense').startswith(
    "There is no recipe 'nonsense' of FFCV. There are: rn18_16, "
  )
  path = tmp_path / 'config.py'
  path.write_text(
    'from resnet.errors import InputError\n'
    'def get_config():\n'
    '  try:\n'
    '    int("x")\n'
    '  except ValueError:\n'
    '    raise InputError("No x.")\n'
  )
  assert explained(path) == 'No x.'


def test_a_config_file_that_raises_is_one_line(tmp_path, data_dir):
  config = tmp_path / 'config.py'
  config.write_text('def get_config():\n  return nothing\n')
  result = main(
    f'--config={config}', f'--workdir={tmp_path / "run"}', data_dir=data_dir
  )
  assert_refused(result, "name 'nothing' is not defined")


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, data_dir):
  (tmp_path / 'file').write_text('kept')
  result = main(
    *SMALL, f'--workdir={tmp_path / "file" / "run"}', data_dir=data_dir
  )
  assert_refused(result, 'file/run')
  assert (tmp_path / 'file').read_text() == 'kept'


def test_a_workdir_of_another_config_is_refused(done, data_dir):
  workdir, _ = done
  result = main(
    *SMALL, f'--workdir={workdir}', '--config.seed=5', data_dir=data_dir
  )
  assert_refused(result, 'seed: 0 there, 5 now')


def test_evaluation_of_another_model_is_refused(done, data_dir):
  workdir, _ = done
  result = main(
    *SMALL,
    f'--workdir={workdir}',
    '--mode=eval',
    '--config.model.name=cifar_resnet20',
    data_dir=data_dir,
  )
  assert_refused(result, 'model.name', 'cifar_resnet8')


def _prepare_own_set(data_dir, broken=None):
  """Prepares a set `shapes` of 40 images with a broken record."""

  class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['dark', 'light']),
            'file_name': tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 128, (12, 10, 3))
        pixels = (pixels + 127 * (i % 2)).astype(np.uint8)
        png = cv2.imencode('.png', pixels)[1].tobytes()
        path = pathlib.Path(data_dir) / f'shape{i}.png'
        path.write_bytes(png[:60] if i == broken else png)
        yield i, {'image': path, 'label': i % 2, 'file_name': path.name}

  tfds.disable_progress_bar()
  Shapes(data_dir=data_dir, file_format='array_record').download_and_prepare()


OWN_SET = (
  '--config.data.name=shapes',
  '--config.data.eval_split=train',
  '--config.batch_size=8',
  '--config.num_epochs=2',
)


def test_a_set_of_ones_own_is_trained_by_name(tmp_path):
  _prepare_own_set(str(tmp_path))
  result = main(
    *SMALL, *OWN_SET, f'--workdir={tmp_path / "run"}', data_dir=str(tmp_path)
  )
  assert result.returncode == 0, result.stderr
  assert 'on shapes (40 train, 40 train images)' in result.stdout


def test_a_broken_image_is_named(tmp_path):
  _prepare_own_set(str(tmp_path), broken=17)
  result = main(
    *SMALL, *OWN_SET, f'--workdir={tmp_path / "run"}', data_dir=str(tmp_path)
  )
  assert_refused(result, 'shape17.png', 'cannot be decoded')
  assert not (tmp_path / 'run').exists()


def test_a_broken_image_may_be_left_out(tmp_path):
  _prepare_own_set(str(tmp_path), broken=17)
  args = (*SMALL, *OWN_SET, '--config.data.on_bad_image=skip')
  args += (f'--workdir={tmp_path / "run"}',)
  result = main(*args, data_dir=str(tmp_path))
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  assert result.stdout.count('shape17.png') == 1
  assert '(39 images, 1 broken left out)' in result.stdout
  evaluated = main(*args, '--mode=eval', data_dir=str(tmp_path))
  warning, line = evaluated.stdout.splitlines()
  assert warning.startswith('warning: The image of record')
  assert line in result.stdout


def test_without_a_workdir_it_is_named_after_the_config(tmp_path, data_dir):
  result = subprocess.run(
    [sys.executable, str(ROOT / 'main.py'), '--mode=eval'],
    cwd=tmp_path,
    env=environment(TFDS_DATA_DIR=data_dir),
    capture_output=True,
    text=True,
    check=False,
  )
  assert_refused(result, 'runs/digits holds no run')
  result = subprocess.run(
    [
      sys.executable,
      str(ROOT / 'main.py'),
      f'--config={ROOT / "configs/cifar10.py"}:resnet20',
      '--config.data.name=fake',
      '--config.data.train_split=train',
      '--mode=eval',
    ],
    cwd=tmp_path,
    env=environment(TFDS_DATA_DIR=data_dir),
    capture_output=True,
    text=True,
    check=False,
  )
  assert_refused(result, 'runs/cifar10_resnet20 holds no run')


def test_help_lists_the_flags():
  result = subprocess.run(
    command('--help'), cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert result.returncode == 0
  assert '--workdir' in result.stdout
  assert '--mode' in result.stdout


def test_nothing_comes_after_the_error():
  script = (
    'import main, threading\n'
    'def raises(message):\n'
    '  def run():\n'
    '    raise ValueError(message)\n'
    '  thread = threading.Thread(target=run)\n'
    '  thread.start()\n'
    '  thread.join()\n'
    'class Raises:\n'
    '  def __del__(self):\n'
    '    raise ValueError("deleted")\n'
    'def run(cluster):\n'
    '  raises("Event loop is closed")\n'
    '  raises("news")\n'
    '  Raises()\n'
    '  raise main.InputError("the end")\n'
    'main.flags.FLAGS(["main.py"])\n'
    'main._join = lambda: None\n'
    'main._run = run\n'
    'main.main([])\n'
    'raises("an echo")\n'
    'Raises()\n'
  )
  result = subprocess.run(
    [sys.executable, '-c', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  *before, last = result.stderr.splitlines()
  assert last == 'error: the end'
  assert [line for line in before if line.startswith('ValueError: ')] == [
    'ValueError: news',
    'ValueError: deleted',
  ]


def test_training_never_imports_tensorflow(tmp_path, data_dir):
  # One that could be imported, so that trying to is seen.
  (tmp_path / 'path').mkdir()
  (tmp_path / 'path' / 'tensorflow.py').write_text('__version__ = "2.20.0"')
  script = (
    'import runpy, sys\n'
    'try:\n'
    '  runpy.run_path("main.py", run_name="__main__")\n'
    'finally:\n'
    '  print("tensorflow" in sys.modules)\n'
  )
  result = subprocess.run(
    [
      sys.executable,
      '-c',
      script,
      *SMALL,
      '--config.data.name=digits',
      '--config.num_epochs=0.05',
      f'--workdir={tmp_path / "run"}',
    ],
    cwd=ROOT,
    env=environment(TFDS_DATA_DIR=data_dir, PYTHONPATH=str(tmp_path / 'path')),
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines()[-1] == 'False'


def test_a_run_leaves_its_curves_and_where_it_was_made(done):
  workdir, _ = done
  assert (workdir / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  text = (workdir / 'starts.jsonl').read_text()
  start, end = [json.loads(line) for line in text.splitlines() if line]
  assert start['step'] == 0
  assert end['end_step'] > 0
  assert 'cores of' in start['hardware']


def test_leaving_the_band_of_a_reference_is_said(done, tmp_path, data_dir):
  fields = {
    'num_seeds': 10,
    'config': {'batch_size': 64, 'model.name': 'resnet50'},
    'bands': {
      'train/loss': {'step': [4, 8], 'mean': [0.0, 2.3], 'std': [0.1, 9]}
    },
  }
  path = tmp_path / 'band.json'
  path.write_text(json.dumps(fields))
  args = (*SMALL, f'--reference={path}', f'--workdir={tmp_path / "run"}')
  result = main(*args, data_dir=data_dir)
  assert result.returncode == 0, result.stderr
  assert (
    "of another config: model.name 'resnet50' there, 'cifar_resnet8' here."
    in result.stdout
  )
  (line,) = [x for x in result.stdout.splitlines() if 'warning' in x]
  assert line.startswith('warning: epoch 0.5: train/loss')
  assert line.endswith('sigma above reference (0.0000)')
  # It only looks.
  metrics = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  expected = (done[0] / 'metrics.jsonl').read_text()
  assert _losses(metrics) == _losses(expected)


def _losses(text):
  return [x.get('train/loss') for x in map(json.loads, text.splitlines())]


def test_a_reference_that_is_none_is_refused(tmp_path, data_dir):
  path = tmp_path / 'band.json'
  path.write_text('[]')
  result = main(
    *SMALL,
    f'--reference={path}',
    f'--workdir={tmp_path / "run"}',
    data_dir=data_dir,
  )
  assert_refused(result, f'--reference={path} is no file of')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_digits_are_learned(tmp_path, data_dir, seed):
  result = main(
    f'--config.seed={seed}', f'--workdir={tmp_path / "run"}', data_dir=data_dir
  )
  assert result.returncode == 0, result.stderr
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  last = json.loads(text.splitlines()[-1])
  assert last['eval/num_examples'] == 360
  assert last['eval/top1'] >= 0.985
