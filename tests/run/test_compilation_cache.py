"""Where compiled programs are kept."""

import os
import platform
import stat

import jax
import pytest

from resnet.run import compilation_cache


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
  return compilation_cache.keep_programs(), jax.config.jax_compilation_cache_dir


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


def test_no_folder_is_created_if_the_user_names_one_or_wants_no_cache(tmp_path):
  mine = str(tmp_path / 'mine')
  assert keep_programs(given=mine) == (None, mine)
  jax.config.update('jax_enable_compilation_cache', False)
  assert keep_programs() == (None, None)
  assert not (tmp_path / 'cache').exists()
