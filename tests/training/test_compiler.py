"""Where compiled programs are kept, and what XLA is told."""

import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training import compiler


@pytest.fixture(autouse=True)
def _settings(monkeypatch, tmp_path):
  """Gives JAX's settings back, and no folder to begin with."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_enable_compilation_cache',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  jax.config.update('jax_enable_compilation_cache', True)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def folder():
  return jax.config.jax_compilation_cache_dir


def test_programs_lie_in_a_private_folder(tmp_path):
  before = os.umask(0)  # The mode must not lean on it.
  try:
    assert compiler.keep_programs() is None
  finally:
    os.umask(before)
  assert os.path.dirname(folder()) == str(tmp_path / 'cache' / 'resnet')
  assert stat.S_IMODE(os.stat(folder()).st_mode) == 0o700


@pytest.mark.parametrize('home', ['', 'relative'])
def test_without_an_absolute_cache_home_it_is_that_of_the_user(
  tmp_path, monkeypatch, home
):
  monkeypatch.setenv('XDG_CACHE_HOME', home)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert compiler.keep_programs() is None
  assert folder().startswith(str(tmp_path / '.cache' / 'resnet'))


def test_a_folder_that_others_may_write_to_is_not_used():
  assert compiler.keep_programs() is None
  path = folder()
  jax.config.update('jax_compilation_cache_dir', None)
  os.chmod(path, 0o770)
  assert f'others may write to {path}' in str(compiler.keep_programs())
  assert folder() is None


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
  (tmp_path / 'cache').write_text('a file')
  assert 'Not a directory' in str(compiler.keep_programs())
  assert folder() is None


def test_the_folder_that_the_user_names_is_kept(tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  assert compiler.keep_programs() is None
  assert folder() == str(tmp_path / 'mine')
  assert not (tmp_path / 'cache').exists()


def test_where_jax_keeps_none_nothing_is_made(tmp_path):
  jax.config.update('jax_enable_compilation_cache', False)
  assert compiler.keep_programs() is None
  assert folder() is None and not (tmp_path / 'cache').exists()


def test_another_processor_has_another_folder(monkeypatch):
  compiler.keep_programs()
  one = folder()
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setattr(compiler.platform, 'machine', lambda: 'another')
  compiler.keep_programs()
  assert folder() != one


def test_the_users_flags_go_before_ours(monkeypatch):
  name, value = 'xla_gpu_enable_latency_hiding_scheduler', True
  assert compiler.options('gpu')[name] is value
  monkeypatch.setenv('XLA_FLAGS', f'--other=1 --{name}=false')
  assert name not in compiler.options('gpu')


def test_experimental_options_are_left_out_where_xla_has_none_such(monkeypatch):
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


def test_what_runs_once_has_options_besides(monkeypatch):
  name = 'xla_backend_optimization_level'
  monkeypatch.setenv('XLA_FLAGS', '')
  assert compiler.options('cpu', runs_once=True) == {
    **compiler.options('cpu'),
    name: 1,
  }
  assert name not in compiler.options('cpu')
  assert compiler.options('tpu', runs_once=True) == {}
  monkeypatch.setenv('XLA_FLAGS', f'--{name}=3')
  assert name not in compiler.options('cpu', runs_once=True)


def test_the_first_state_is_such_a_program(monkeypatch):
  asked = []
  monkeypatch.setattr(
    experiment.compiler, 'options', lambda *args, **kw: asked.append((args, kw))
  )
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  experiment.resolve(config).create_state()
  assert asked == [(('cpu',), {'runs_once': True})]


@pytest.mark.slow
def test_the_first_state_has_the_bits_of_one_compiled_with_all_passes():
  run = experiment.resolve(fake.get_config())
  shapes = jax.eval_shape(run._create_state, jax.random.key(run.seed))

  def create(**options):
    create_state = jax.jit(
      run._create_state,
      out_shardings=run.sharding.of_state(shapes),
      compiler_options=options,
    )
    return create_state(jax.random.key(run.seed))

  for ours, theirs in zip(
    jax.tree.leaves(run.create_state()),
    jax.tree.leaves(create(xla_backend_optimization_level=3)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)
