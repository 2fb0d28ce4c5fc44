"""Nothing that is read can run a program."""

import ast
import json
import os
import pathlib
import pickle
import stat
import subprocess
import sys

import pytest

from resnet.errors import InputError
from resnet.training import workdir
from resnet.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
  ROOT / 'main.py',
  *(p for part in ('resnet', 'configs') for p in (ROOT / part).rglob('*.py')),
]
# Of modules that run what they read, or make Python run a text.
_MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}
_MODULES |= {'marshal', 'torch', 'imp'}
_CALLS = {'eval', 'exec', 'compile', '__import__'}


class Bomb:
  """Makes a file where it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_of_ours_unpickles_or_executes(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = {alias.name.partition('.')[0] for alias in node.names}
      assert not names & _MODULES, names
    elif isinstance(node, ast.ImportFrom):
      assert (node.module or '').partition('.')[0] not in _MODULES
    elif isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name):
        assert node.func.id not in _CALLS
      for keyword in node.keywords:
        if keyword.arg == 'allow_pickle':
          assert isinstance(keyword.value, ast.Constant)
          assert keyword.value.value is False


def test_a_bomb_goes_off_where_it_is_unpickled(tmp_path):
  pickle.loads(pickle.dumps(Bomb(tmp_path / 'bang')))
  assert (tmp_path / 'bang').exists()


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_for_a_config_is_refused(tmp_path, protocol):
  bomb = pickle.dumps(Bomb(tmp_path / 'bang'), protocol)
  (tmp_path / workdir.CONFIG_FILE).write_bytes(bomb)
  with pytest.raises(InputError, match=r'config\.json'):
    workdir.read_config(str(tmp_path))
  assert not (tmp_path / 'bang').exists()


def test_a_config_is_read_as_data(tmp_path):
  code = f"__import__('os').mkdir({str(tmp_path / 'bang')!r})"
  config = {'config': {'model.name': code, 'seed': code}, 'derived': {}}
  (tmp_path / workdir.CONFIG_FILE).write_text(json.dumps(config))
  assert workdir.read_config(str(tmp_path)) == config
  assert not (tmp_path / 'bang').exists()


def test_pickles_in_a_checkpoint_are_not_opened(tmp_path):
  """Every file of it is a bomb."""
  folder = tmp_path / 'checkpoints' / '3'
  for name in (
    'default/_METADATA',
    'default/manifest.ocdbt',
    'metrics/metrics',
  ):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / 'bang')))
  (folder / '_CHECKPOINT_METADATA').write_bytes(
    pickle.dumps(Bomb(tmp_path / 'bang'))
  )
  with pytest.raises(InputError, match='is damaged'):
    Checkpoints(str(tmp_path))
  said = []
  checkpoints = Checkpoints(str(tmp_path), keep=1, say=said.append)
  assert 'checkpoint of step 3' in said[0]
  assert checkpoints.all_steps() == []
  checkpoints.close()
  assert not (tmp_path / 'bang').exists()


def test_outside_of_the_workdir_only_compiled_programs_are_written(tmp_path):
  """In a private folder, by the first run; by none where it is asked not to."""
  kept = {
    'MPLCONFIGDIR': str(tmp_path / 'matplotlib'),
    'XLA_FLAGS': '',
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
  }
  without = {'XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR'}
  environment = {k: v for k, v in os.environ.items() if k not in without}

  def run(home, name, *flags):
    home = tmp_path / home
    home.mkdir(exist_ok=True)
    done = subprocess.run(
      [
        *(sys.executable, 'main.py', '--config=configs/fake.py'),
        *('--config.data.image_size=8', '--config.data.eval_resize=8'),
        *(f'--workdir={tmp_path / name}', *flags),
      ],
      cwd=ROOT,
      env={**environment, **kept, 'HOME': str(home)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0 and done.stderr == '', done.stderr
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    loss = [json.loads(line).get('train/loss') for line in lines]
    return loss, {p for p in home.rglob('*') if p.is_file()}

  loss_cold, files = run('home', 'cold')
  (folder,) = (tmp_path / 'home' / '.cache' / 'resnet').iterdir()
  assert files and all(path.parent == folder for path in files)
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  loss_warm, files_then = run('home', 'warm')
  assert files_then == files and loss_cold == loss_warm
  # The run is complete; but the folder is made before that is found.
  assert not run('home2', 'warm', '--nokeep_programs')[1]
  assert not (tmp_path / 'home2' / '.cache').exists()
