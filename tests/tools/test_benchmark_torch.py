"""torchvision's step as a rival: eager and compiled, where they work."""

import contextlib
import types

import jax
import numpy as np
import pytest

from configs import fake
from resnet.errors import InputError
from resnet.tools import benchmark_step, programs


def _run():
  """Returns a run on one of the devices, as torch wants it."""
  run = programs.resolve_here(fake.get_config())
  one = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  object.__setattr__(run.sharding, 'mesh', one)
  return run


def _rivals(*names):
  args = types.SimpleNamespace(subject='step', torch_python=None, also=[])
  with contextlib.ExitStack() as cleanup:
    return benchmark_step._others(None, list(names), args, cleanup)


@pytest.fixture
def failing(monkeypatch):
  """The names that cannot be started; the others can."""
  names = set()

  def start(_run, _subject, name, _python):
    if name in names:
      raise InputError(f'{name} does not work here: no compiler.')
    return contextlib.nullcontext(name)

  monkeypatch.setattr(programs, 'torch', start)
  return names


def test_torch_is_eager_and_compiled(failing):
  assert list(_rivals('torch', 'torch-eager')) == [
    'torch-eager',
    'torch-compile',
  ]
  assert list(_rivals('torch-compile')) == ['torch-compile']
  failing.add('torch-eager')
  with pytest.raises(InputError, match='torch-eager does not work'):
    _rivals('torch')


def test_eager_goes_on_where_compile_cannot(failing, capsys):
  failing.add('torch-compile')
  assert list(_rivals('torch')) == ['torch-eager']
  assert capsys.readouterr().out == (
    'Without torch-compile: torch-compile does not work here: no compiler.\n'
  )
  for asked in (['torch-compile'], ['torch', 'torch-compile']):
    with pytest.raises(InputError, match='torch-compile does not work'):
      _rivals(*asked)


@pytest.mark.slow
def test_without_a_compiler_torch_says_why(tmp_path, monkeypatch):
  pytest.importorskip('torchvision')
  monkeypatch.setenv('CXX', '/none/g++')
  monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
  with pytest.raises(
    InputError, match=r'torch-compile does not work here: .* C\+\+ compiler'
  ):
    programs.torch(_run(), 'step', 'torch-compile', None)


@pytest.mark.slow
def test_torch_takes_turns():
  pytest.importorskip('torchvision')
  run = _run()
  for subject in ('step', 'eval'):
    with programs.torch(run, subject, 'torch-eager', None) as program:
      assert program.seconds(2) > 0
  config = {**run.config, 'model.name': 'preact_resnet18'}
  object.__setattr__(run, 'config', config)
  with pytest.raises(InputError, match='none with such a network'):
    programs.torch(run, 'step', 'torch-eager', None)
