"""Runs of one config are compiled once: compiling takes most of their time."""

import jax
import pytest

# Not where what the compiler says of a program is looked at: one that was kept
# says less.
_KEEP = (
  'test_loop',
  'test_recipes',
  'test_evaluate',
  'test_initialize',
  'test_programs',
)


@pytest.fixture(scope='session')
def programs(tmp_path_factory):
  """A folder of this process alone: JAX does not write to it atomically."""
  return str(tmp_path_factory.mktemp('programs'))


@pytest.fixture(scope='module', autouse=True)
def _keep_programs(request, programs):
  if request.module.__name__.rpartition('.')[2] not in _KEEP:
    yield
    return
  values = {
    'jax_enable_compilation_cache': True,
    'jax_compilation_cache_dir': programs,
  }
  before = {name: getattr(jax.config, name) for name in values}
  for name, value in values.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
