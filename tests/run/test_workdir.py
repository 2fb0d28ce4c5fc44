"""A run's folder and its config."""

import pytest

from resnet.errors import InputError
from resnet.run import workdir


def test_a_config_is_read_as_it_was_written(tmp_path):
  folder = str(tmp_path)
  assert workdir.read_config(folder) is None
  workdir.write_config(folder, {'seed': 1, 'data.mean': None}, {'num_steps': 3})
  assert workdir.read_config(folder) == {
    'config': {'seed': 1, 'data.mean': None},
    'derived': {'num_steps': 3},
  }
  for text in ('{', '{"config": {}}'):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(InputError, match=r'config\.json'):
      workdir.read_config(str(tmp_path))


def test_folders_that_cannot_be_made_are_refused(tmp_path):
  # A folder `gs:` would be made, on each machine another one.
  with pytest.raises(InputError, match='gs://bucket/run is an address'):
    workdir.read_config('gs://bucket/run')
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='Not a directory'):
    workdir.read_config(str(tmp_path / 'file' / 'run'))
