"""Eight virtual devices, strict dtypes, a data folder of its own."""

import os
import sys

_EIGHT_DEVICES = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_EIGHT_DEVICES}'
os.environ['JAX_PLATFORMS'] = 'cpu'
# Programs that a test starts compile for themselves, and write nothing to the
# user's cache.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

from absl import flags
import jax
import pytest
from tensorflow_datasets.core import constants

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')


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
def _compiled_programs_are_shared(tmp_path_factory):
  """Between tests, and between the workers of pytest-xdist."""
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent
  jax.config.update('jax_enable_compilation_cache', True)
  jax.config.update('jax_compilation_cache_dir', str(base / 'jax_cache'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
