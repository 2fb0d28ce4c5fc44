"""The benchmark of the input road: what it measures and what it refuses."""

import json
import subprocess
import sys

import pytest

from configs import fake
from resnet.errors import InputError
from resnet.tools import benchmark, benchmark_input


def run(*words, **fields):
  # The config is given below.
  args, _ = benchmark.parser().parse_known_args(['input', *words])
  args.config = fake.get_config()
  args.config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  benchmark.main(args)


def test_stages_roads_and_cores_are_told(tmp_path, capsys):
  path = tmp_path / 'figures.json'
  run(
    '--rounds=2',
    '--batches=2',
    f'--json={path}',
    '--also=data.crop=random_resized data.num_threads=1',
    '--also=data.augment_on=device',
  )
  found = json.loads(path.read_text())
  roads = [
    'config',
    'data.crop=random_resized data.num_threads=1',
    'data.augment_on=device',
  ]
  assert list(found['images_per_second']) == roads
  for road in roads:
    assert len(found['images_per_second'][road]) == 2
    assert set(found['stages_us'][road]) == set(benchmark_input._STAGES)
    assert all(value > 0 for value in found['stages_us'][road].values())
  assert list(found['ratios']) == [f'{road} / config' for road in roads[1:]]
  assert 0 <= found['data_wait']['share'] < 1
  text = capsys.readouterr().out
  assert 'ResNet-50 on one H100 (6,000 images/s):' in text
  assert 'Read ahead: at most' in text


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--against=dali'], 'dali is none of tfdata, torchvision'),
    (['--against=tfdata'], r'needs JPEG files: --config\.data\.name=folder'),
    (['--also=seed=1'], 'is not data.FIELD=VALUE'),
    (['--also=data.speed=1'], 'speed'),
    (['--rounds=0'], 'at least 1'),
  ],
)
def test_bad_arguments_are_said(words, message):
  with pytest.raises(InputError, match=message):
    run(*words)


def test_an_unknown_subject_is_one_line():
  command = [sys.executable, '-m', 'resnet.tools.benchmark', 'speed']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1 and "'speed'" in done.stderr
