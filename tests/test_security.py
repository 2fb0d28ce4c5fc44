"""Nothing that is read can run a program."""

import ast
import os
import pathlib
import pickle

import pytest

from resnet.errors import InputError
from resnet.run import workdir
from resnet.run.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent
# Modules that run what they read, or make Python run a text.
MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}
MODULES |= {'marshal', 'torch', 'imp'}
CALLS = {'eval', 'exec', 'compile', '__import__'}


class Bomb:
  """Makes a folder where it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


def executes(node):
  """Whether a part of a program unpickles or executes what it reads."""
  match node:
    case ast.Import(names):
      return any(name.name.partition('.')[0] in MODULES for name in names)
    case ast.ImportFrom(module):
      return (module or '').partition('.')[0] in MODULES
    case ast.Call(ast.Name(name)) if name in CALLS:
      return True
    case ast.keyword('allow_pickle', value):
      return not isinstance(value, ast.Constant) or value.value is not False
  return False


def test_no_file_of_ours_unpickles_or_executes():
  files = [ROOT / 'main.py']
  for folder in ('resnet', 'configs'):
    files += (ROOT / folder).rglob('*.py')
  assert len(files) > 100
  found = [
    f'{path}:{node.lineno}'
    for path in files
    for node in ast.walk(ast.parse(path.read_text()))
    if executes(node)
  ]
  assert not found
  for text in ('import pickle', 'from torch import x', 'f(allow_pickle=y)'):
    assert any(map(executes, ast.walk(ast.parse(text))))


def test_a_pickle_for_a_config_is_refused(tmp_path):
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    bomb = pickle.dumps(Bomb(tmp_path / 'bang'), protocol)
    (tmp_path / workdir.CONFIG_FILE).write_bytes(bomb)
    with pytest.raises(InputError, match=r'config\.json'):
      workdir.read_config(str(tmp_path))
    assert not (tmp_path / 'bang').exists()
  pickle.loads(bomb)
  assert (tmp_path / 'bang').exists()


def test_pickles_in_a_checkpoint_are_not_opened(tmp_path, capsys):
  """Every file of it is a bomb."""
  folder = tmp_path / 'checkpoints' / '3'
  for name in (
    '_CHECKPOINT_METADATA',
    'default/_METADATA',
    'default/manifest.ocdbt',
    'metrics/metrics',
  ):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / 'bang')))
  with pytest.raises(InputError, match='is damaged'):
    Checkpoints(str(tmp_path))
  checkpoints = Checkpoints(str(tmp_path), keep=1)
  assert 'checkpoint of step 3' in capsys.readouterr().out
  assert checkpoints.all_steps() == []
  checkpoints.close()
  assert not (tmp_path / 'bang').exists()
