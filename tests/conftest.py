"""Settings of all tests: eight virtual devices, strict dtypes, own folders."""

import importlib
import os
import pathlib
import subprocess
import sys

# LLVM's costly passes take longer than the small programs of tests; another
# level may be given.
_LEVEL = '--xla_backend_optimization_level=1'
_DEVICES = '--xla_force_host_platform_device_count=8'
_GIVEN = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{_LEVEL} {_GIVEN} {_DEVICES}'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'true'

from absl import flags
import jax
import pytest
from tensorflow_datasets.core import constants

from resnet.tools import command

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# JAX has read it in this process. Programs that a test starts do not write to
# the user's cache.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def pytest_configure():
  # Grain's worker processes ask for parsed absl flags.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A folder for prepared data sets; `digits` is made in it on first use."""
  return str(tmp_path_factory.mktemp('tensorflow_datasets'))


@pytest.fixture(scope='session', autouse=True)
def _data_dir_is_the_default(data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, 'DATA_DIR', data_dir)
    yield


@pytest.fixture(scope='session', autouse=True)
def _compilation_cache(tmp_path_factory):
  """A cache of this process alone, because JAX does not write atomically."""
  folder = tmp_path_factory.mktemp('compilation_cache')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.02)


@pytest.fixture(scope='module', autouse=True)
def _free_memory():
  """Drops the compiled programs of a module, which no other one calls."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def real_data():
  """The folder of real photographs and weights; skips where it is not there."""
  default = pathlib.Path(__file__).parents[2] / 'shared' / 'data'
  folder = pathlib.Path(os.environ.get('RESNET_TEST_DATA', default))
  if not folder.is_dir():
    pytest.skip(f'no real images: $RESNET_TEST_DATA={folder} is no folder')
  return folder


@pytest.fixture
def tool(monkeypatch, capsys):
  """(NAME, *ARGS) -> exit code and output of `python -m resnet.tools.NAME`.

  The tool runs in this process, so that tests may patch what it calls.
  """

  def run(name, *args):
    module = importlib.import_module(f'resnet.tools.{name}')
    if hasattr(module, '__path__'):
      module = importlib.import_module(f'resnet.tools.{name}.__main__')
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    code = 0
    try:
      command.run(module.main, module.parser())
    except SystemExit as end:
      code = end.code
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess(args, code, out, err)

  return run
