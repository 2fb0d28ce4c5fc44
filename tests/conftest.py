"""Eight virtual devices, strict dtypes, a data folder of its own."""

import os
import sys
import time

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

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# JAX has read it in this process. Programs that a test starts compile for
# themselves, and write nothing to the user's cache.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def pytest_addoption(parser):
  parser.addoption(
    '--until',
    type=float,
    metavar='SECONDS',
    help='Skip, by name, what would begin later than this, since the epoch.',
  )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  until = item.config.getoption('--until')
  if until is not None and time.time() > until:
    pytest.skip(f'no time left for {item.nodeid}')


def pytest_configure():
  # Grain's worker processes ask for parsed absl flags.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A folder for prepared data sets; `digits` is made in it on first use."""
  return str(tmp_path_factory.mktemp('tensorflow_datasets'))


@pytest.fixture(scope='session', autouse=True)
def _this_data_dir_is_the_default(data_dir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, 'DATA_DIR', data_dir)
    yield


@pytest.fixture(scope='session', autouse=True)
def _programs_are_compiled_once(tmp_path_factory):
  """In a folder of this process alone: JAX does not write to it atomically."""
  folder = tmp_path_factory.mktemp('programs')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.02)
