"""The command line in processes of its own: what it prints, writes, refuses."""

import json
import pathlib
import stat

import cv2
import jax
import matplotlib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from resnet import config as config_lib
from resnet import experiment
from resnet.errors import InputError
from resnet.run.initialize import evaluate_checkpoint
from tests.programs import ROOT, SMALL, assert_refused, run, run_main
from tests.runs import as_flags, fake_config, read_metrics, resolve

# ml_collections loads config files in a way that Python 3.12 deprecates.
LOADS_A_CONFIG = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)


def run_at_home(home, *args):
  """Runs main.py to its end, for a user whose home folder this is."""
  home.mkdir(exist_ok=True)
  result = run_main(
    *SMALL,
    *args,
    keep_programs=False,
    HOME=str(home),
    JAX_ENABLE_COMPILATION_CACHE='true',
    JAX_COMPILATION_CACHE_DIR='',
    XDG_CACHE_HOME='',
    # Matplotlib has its own cache.
    MPLCONFIGDIR=matplotlib.get_cachedir(),
  )
  assert (result.returncode, result.stderr) == (0, '')
  return result.stdout


def files_under(folder):
  """Returns when each file under the folder was changed."""
  files = (path for path in folder.rglob('*') if path.is_file())
  return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return tmp_path_factory.mktemp('main') / 'home'


@pytest.fixture(scope='module')
def done(home):
  """The workdir of a finished run, and what it printed."""
  workdir = home.parent / 'run'
  return workdir, run_at_home(home, f'--workdir={workdir}')


def test_a_run_shows_progress_ends_with_a_table_and_draws_curves(done):
  workdir, stdout = done
  lines = stdout.splitlines()
  assert lines[0].startswith('Training cifar_resnet8 on fake (512 train')
  assert 'First step done' in lines[1]
  assert any(
    line.startswith('step 8/16') and 'images/s' in line for line in lines
  )
  table = dict(line.split('  ', 1) for line in map(str.strip, lines[-7:]))
  names = ['steps', 'eval top-1', 'eval top-5', 'eval loss', 'images/s']
  assert list(table) == [*names, 'wall time', 'files']
  assert table['files'].strip() == str(workdir)
  top1 = read_metrics(workdir)[-1]['eval/top1']
  assert float(table['eval top-1']) == pytest.approx(top1, abs=1e-4)
  # It leaves its curves, and where it was made.
  assert (workdir / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  text = (workdir / 'starts.jsonl').read_text()
  start, end = [json.loads(line) for line in text.splitlines() if line]
  assert start['step'] == 0
  assert end['end_step'] > 0
  assert 'cores of' in start['hardware']


def test_only_compiled_programs_are_written_outside_of_the_workdir(
  done, home, tmp_path
):
  """By the first run; the second one, with a reference, finds them there."""
  programs = files_under(home)
  (folder,) = (home / '.cache' / 'resnet').iterdir()
  assert programs and all(path.parent == folder for path in programs)
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  fields = {
    'num_seeds': 10,
    'config': {'batch_size': 64, 'model.name': 'resnet50'},
    'bands': {
      'train/loss': {'step': [4, 8], 'mean': [0.0, 2.3], 'std': [0.1, 9]}
    },
  }
  band = tmp_path / 'band.json'
  band.write_text(json.dumps(fields))
  workdir = tmp_path / 'run'
  stdout = run_at_home(home, f'--reference={band}', f'--workdir={workdir}')
  assert files_under(home).keys() == programs.keys()
  # That the run leaves the band is shown, and changes nothing.
  assert 'the config differs in model.name.' in stdout
  (line,) = [x for x in stdout.splitlines() if x.startswith('warning')]
  assert 'epoch 0.5: train/loss' in line and 'above reference (0.0000)' in line
  losses, expected = (
    [line.get('train/loss') for line in read_metrics(folder)]
    for folder in (workdir, done[0])
  )
  assert losses == expected


def test_the_command_after_the_end_changes_nothing(done, tmp_path):
  """Not even with other values of fields that leave the weights alone."""
  workdir, _ = done
  before = files_under(workdir)
  stdout = run_at_home(
    tmp_path / 'home',
    f'--workdir={workdir}',
    '--nokeep_programs',
    '--config.keep_checkpoints=1',
    '--allow_config_change',
  )
  assert 'complete: nothing to do' in stdout
  assert 'eval top-1' in stdout
  assert files_under(workdir) == before
  assert not files_under(tmp_path / 'home')


def test_evaluation_may_use_another_batch_size_and_other_devices(done):
  workdir, _ = done
  args = ('--mode=eval', '--config.batch_size=24', f'--workdir={workdir}')
  result = run_main(*SMALL, *args, devices=8)
  assert result.returncode == 0, result.stderr
  # The best checkpoint is evaluated.
  evaluations = [x for x in read_metrics(workdir) if 'eval/top1' in x]
  best = max(evaluations, key=lambda line: line['eval/top1'])
  first, line = result.stdout.splitlines()
  step = best['step']
  assert first == f'Reading the best checkpoint of {workdir}, step {step}.'
  assert line.startswith(f'eval at step {step}: ')
  assert '(100 images)' in result.stdout
  loss = float(result.stdout.split('loss ')[1].split()[0])
  assert loss == pytest.approx(best['eval/loss'], abs=2e-4)


def test_evaluation_of_another_model_is_refused(done):
  other = resolve(model__name='cifar_resnet20')
  with pytest.raises(InputError, match=r'model\.name.*cifar_resnet8'):
    evaluate_checkpoint(other, str(done[0]), 'best')


@pytest.mark.parametrize(
  ('args', 'parts'),
  [
    # Found as the flags are read: these processes take a moment.
    (['--config.modle.name=x'], ['modle', 'model']),
    (['--nonsense=1'], ['nonsense']),
    (['train'], ["'train' is not a flag"]),
    # And as the config is resolved.
    ([*SMALL, '--config.batch_size=63'], ['63', '8 devices', '56 or 64']),
    ([*SMALL, '--workdir=runs/lr[0.1]'], ['/runs/lr[0.1]', '[ or ]']),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, args, parts):
  workdir = tmp_path / 'run'
  result = run_main(f'--workdir={workdir}', *args, devices=8)
  assert_refused(result, *parts)
  assert result.stdout == ''
  assert not workdir.exists()


def test_a_missing_backend_is_named(tmp_path):
  workdir = f'--workdir={tmp_path / "run"}'
  result = run_main(*SMALL, workdir, JAX_PLATFORMS='cuda')
  assert_refused(result, "'cuda'", 'JAX_PLATFORMS=cpu')


def test_a_config_file_that_raises_is_one_line(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text('def get_config():\n  return nothing\n')
  result = run_main(f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert_refused(result, "name 'nothing' is not defined")


@pytest.mark.parametrize(
  ('args', 'part'),
  [
    (['--config.seed=5'], 'seed: 0 there, 5 now'),
    (['--mode=replay'], 'no bad step'),
  ],
)
def test_flags_that_do_not_fit_the_workdir_are_refused(done, args, part):
  workdir, _ = done
  before = files_under(workdir)
  assert_refused(run_main(*SMALL, f'--workdir={workdir}', *args), part)
  assert files_under(workdir) == before


def test_the_default_is_digits_in_a_folder_named_after_the_config(
  tmp_path, data_dir
):
  options = {'cwd': tmp_path, 'TFDS_DATA_DIR': data_dir}
  result = run(ROOT / 'main.py', '--mode=eval', **options)
  assert_refused(result, 'runs/digits holds no run')
  assert not list(tmp_path.iterdir())
  path = 'some/configs/cifar10.py:resnet20'
  assert config_lib.default_workdir(path) == 'runs/cifar10_resnet20'


def explained(config):
  """Returns what --config=CONFIG is refused with; all tools ask for this."""
  with pytest.raises(InputError) as error:
    config_lib.read(['main.py', f'--config={config}'])
  return ' '.join(str(error.value).split())


@LOADS_A_CONFIG
def test_an_argument_for_a_config_without_one_is_refused():
  path = f'{ROOT}/configs/resnetrs50.py'
  assert explained(f'{path}:a:b') == (
    f'--config={path}:a:b: this config takes no argument after the colon: type'
    f' --config={path}'
  )


@LOADS_A_CONFIG
def test_only_the_input_error_of_a_config_file_is_printed(tmp_path):
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


class Shapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A set of 40 images, of which number 17 is cut off."""

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
      path = pathlib.Path(self.data_dir).parents[1] / f'shape{i}.png'
      path.write_bytes(png[:60] if i == 17 else png)
      yield i, {'image': path, 'label': i % 2, 'file_name': path.name}


OWN_SET = {
  'data__name': 'shapes',
  'data__eval_split': 'train',
  'data__image_size': 8,
  'data__eval_resize': 8,
  'batch_size': 8,
}


@pytest.fixture(scope='module')
def shapes_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('shapes'))
  tfds.disable_progress_bar()
  Shapes(data_dir=folder, file_format='array_record').download_and_prepare()
  return folder


def test_an_own_set_is_trained_without_its_broken_image_and_tensorflow(
  shapes_dir, tmp_path, capsys
):
  # A TensorFlow that could be imported, so that trying to is seen.
  (tmp_path / 'path').mkdir()
  (tmp_path / 'path' / 'tensorflow.py').write_text('__version__ = "2.20.0"')
  script = (
    'import runpy, sys\n'
    'try:\n'
    '  runpy.run_path("main.py", run_name="__main__")\n'
    'finally:\n'
    '  print("tensorflow" in sys.modules)\n'
  )
  workdir = tmp_path / 'run'
  skip = {**OWN_SET, 'data__on_bad_image': 'skip'}
  env = {'TFDS_DATA_DIR': shapes_dir, 'PYTHONPATH': str(tmp_path / 'path')}
  args = (*as_flags(**skip), f'--workdir={workdir}')
  result = run('-c', script, *args, **env)
  assert (result.returncode, result.stderr) == (0, '')
  assert result.stdout.splitlines()[-1] == 'False'
  assert 'on shapes (40 train, 40 train images)' in result.stdout
  assert result.stdout.count('shape17.png') == 1
  assert '(39 images, 1 broken left out)' in result.stdout
  config = fake_config(data__data_dir=shapes_dir, **skip)
  same = experiment.resolve(config, devices=jax.devices()[:1])
  assert evaluate_checkpoint(same, str(workdir), 'best') == 0
  kind, warning, line = capsys.readouterr().out.splitlines()
  assert kind.startswith('Reading the best checkpoint')
  assert warning.startswith('warning: The image of record')
  assert line in result.stdout


def test_thread_errors_are_hidden_after_the_error():
  """Threads may raise before the last line, not after it."""
  script = (
    'import sys, threading\n'
    'from resnet import errors, experiment, main\n'
    'def raises(message):\n'
    '  def run():\n'
    '    raise ValueError(message)\n'
    '  thread = threading.Thread(target=run)\n'
    '  thread.start()\n'
    '  thread.join()\n'
    'def resolve(config):\n'
    '  raises("Event loop is closed")\n'
    '  raises("Encountered error while reading array index: (0,)")\n'
    '  raises("news")\n'
    '  raise errors.InputError("the end")\n'
    'experiment.resolve = resolve\n'
    'main.flags.FLAGS(sys.argv)\n'
    'assert main.main([]) == 2\n'
    'raises("an echo")\n'
  )
  result = run('-c', script, *SMALL, '--nokeep_programs')
  *before, last = result.stderr.splitlines()
  assert result.returncode == 0
  assert last == 'error: the end'
  errors = [line for line in before if line.startswith('ValueError: ')]
  assert errors == ['ValueError: news']


@pytest.mark.slow
def test_digits_are_learned(tmp_path, data_dir):
  workdir = tmp_path / 'run'
  result = run_main(f'--workdir={workdir}', TFDS_DATA_DIR=data_dir)
  assert result.returncode == 0, result.stderr
  last = read_metrics(workdir)[-1]
  assert last['eval/num_examples'] == 360
  assert last['eval/top1'] >= 0.985
