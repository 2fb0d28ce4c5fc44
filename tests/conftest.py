"""Eight virtual devices, strict dtypes, a data folder of its own."""

import os
import sys

_EIGHT_DEVICES = '--xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_EIGHT_DEVICES}'
os.environ['JAX_PLATFORMS'] = 'cpu'

from absl import flags
import jax
import pytest

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


@pytest.fixture(autouse=True)
def _no_other_data(monkeypatch, data_dir):
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
