"""Where compiled programs are kept, and the options of XLA."""

import functools
import os
import platform
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.training import compiler
from resnet.training.state import create_state
from tests.runs import tiny


@pytest.fixture(autouse=True)
def _settings(monkeypatch, tmp_path):
  """Restores JAX's settings."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_enable_compilation_cache',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_enable_compilation_cache', True)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def keep_programs(given=None):
  """Returns what is reported, and the folder where programs are kept."""
  jax.config.update('jax_compilation_cache_dir', given)
  return compiler.keep_programs(), jax.config.jax_compilation_cache_dir


def test_programs_are_kept_in_a_private_folder_for_each_processor(
  tmp_path, monkeypatch
):
  before = os.umask(0)  # The mode must not depend on it.
  try:
    reported, folder = keep_programs()
  finally:
    os.umask(before)
  assert reported is None
  assert os.path.dirname(folder) == str(tmp_path / 'cache' / 'resnet')
  assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
  with monkeypatch.context() as patch:
    patch.setattr(platform, 'machine', lambda: 'another')
    assert keep_programs()[1] != folder
  # One that others may write to is not used.
  os.chmod(folder, 0o770)
  reported, none = keep_programs()
  assert f'others may write to {folder}' in reported
  assert none is None


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
  (tmp_path / 'cache').write_text('a file')
  reported, folder = keep_programs()
  assert 'Not a directory' in reported
  assert folder is None


def test_nothing_is_made_where_the_user_names_a_folder_or_wants_none(tmp_path):
  mine = str(tmp_path / 'mine')
  assert keep_programs(given=mine) == (None, mine)
  jax.config.update('jax_enable_compilation_cache', False)
  assert keep_programs() == (None, None)
  assert not (tmp_path / 'cache').exists()


def test_the_users_flags_take_precedence(monkeypatch):
  name = 'xla_gpu_enable_latency_hiding_scheduler'
  assert compiler.options('gpu') == {name: True}
  monkeypatch.setenv('XLA_FLAGS', f'--other=1 --{name}=false')
  assert compiler.options('gpu') == {}


def test_experimental_options_that_xla_does_not_know_are_left_out(monkeypatch):
  name, value = next(iter(compiler.XLA_OPTIONS['cpu'].items()))
  assert compiler.options('cpu') == {name: value}
  options = {'xla_cpu_experimental_nonsense': 'A', name: value}
  monkeypatch.setitem(compiler.XLA_OPTIONS, 'cpu', options)
  assert compiler.options('cpu') == {name: value}
  monkeypatch.setitem(compiler.XLA_OPTIONS, 'cpu', {name: 'NONSENSE'})
  assert compiler.options('cpu') == {}


def test_xla_knows_the_options():
  for options in (
    *compiler.XLA_OPTIONS.values(),
    *compiler.XLA_OPTIONS_ONCE.values(),
  ):
    double = jax.jit(lambda x: 2 * x, compiler_options=dict(options))
    assert double(jnp.float32(3)) == 6
  wrong = jax.jit(lambda x: 2 * x, compiler_options={'xla_gpu_nonsense': True})
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_gpu_nonsense'):
    wrong(jnp.float32(3))


def test_a_program_that_runs_once_is_not_optimized(monkeypatch):
  always, level = compiler.options('cpu'), 'xla_backend_optimization_level'
  monkeypatch.setenv('XLA_FLAGS', '')
  assert compiler.options('cpu', runs_once=True) == {**always, level: 1}
  assert compiler.options('cpu') == always
  assert compiler.options('tpu', runs_once=True) == {}
  monkeypatch.setenv('XLA_FLAGS', f'--{level}=3')
  assert compiler.options('cpu', runs_once=True) == always


def test_the_first_state_has_the_bits_of_an_optimized_program(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  run = tiny()
  create = functools.partial(
    create_state,
    model=run.task.model,
    tx=run.task.tx,
    image_shape=run.image_shape,
  )
  options = {'xla_backend_optimization_level': 3}
  state = jax.jit(create, compiler_options=options)(jax.random.key(run.seed))
  jax.tree.map(np.testing.assert_array_equal, run.create_state(), state)
