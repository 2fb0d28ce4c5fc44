"""The summary tool: what it prints is what the papers print."""

import json
import re
import sys

import pytest

from resnet.models import list_models
from resnet.tools import command, summary


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> what the tool prints; raises SystemExit for bad input."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['summary', *args])
    command.run(summary.main, summary.parser())
    return capsys.readouterr().out

  return run


def test_one_network_is_printed_as_table_1(run):
  """He et al. 2016, Table 1, the column of 50 layers."""
  lines = run('resnet50').splitlines()
  cells = [re.split(r' {2,}', line) for line in lines]
  assert cells[0][:3] == ['stage', 'output', 'layers']
  assert [row[:3] for row in cells[1:7]] == [
    ['stem', '112x112', '7x7 64'],
    ['stage1', '56x56', '3x3 max-pool; [1x1 64, 3x3 64, 1x1 256] x 3'],
    ['stage2', '28x28', '[1x1 128, 3x3 128, 1x1 512] x 4'],
    ['stage3', '14x14', '[1x1 256, 3x3 256, 1x1 1024] x 6'],
    ['stage4', '7x7', '[1x1 512, 3x3 512, 1x1 2048] x 3'],
    ['head', '1x1', 'average pool, dense 1000'],
  ]
  assert cells[7][:4] == ['resnet50', '25,557,032', '4.117 G', '11.115 M']


@pytest.mark.parametrize(
  ('name', 'cell'),
  [
    ('resnext50_32x4d', '[1x1 128, 3x3 128 (groups 32), 1x1 256] x 3'),
    ('resnet50d', '3x3 32, 3x3 32, 3x3 64'),
    ('seresnet50', '[1x1 64, 3x3 64, 1x1 256] x 3'),
    ('plain18', '[3x3 512, 3x3 512] x 2'),
    ('cifar_resnet20', '[3x3 16, 3x3 16] x 3'),
    ('lecture_resnet50', '3x3 128; [1x1 64, 3x3 64, 1x1 128] x 3'),
  ],
)
def test_layers_of_other_networks(run, name, cell):
  assert f' {cell} ' in run(name)


def test_it_shows_1088_against_2304(run):
  text = run('resnet18')
  assert '69,632 = 64 x 1,088' in text
  assert '589,824 = 256 x 2,304' in text


def test_several_networks_are_rows_of_a_table(run):
  lines = run('resnet18', 'cifar_resnet20', '--markdown').splitlines()
  cells = [[c.strip() for c in line.split('|')[1:-1]] for line in lines[:4]]
  assert cells[0][:3] == ['network', 'image', 'parameters']
  assert all(re.fullmatch('-+:?', cell) for cell in cells[1])
  assert cells[2][:4] == ['resnet18', '224', '11,689,512', '1.820 G']
  assert cells[3][:4] == ['cifar_resnet20', '32', '269,722', '0.041 G']


def test_json_has_the_numbers_and_adds_up(run):
  record = json.loads(run('resnet18', '--json', '--batch-size=4'))['resnet18']
  assert record['parameters'] == 11_689_512
  assert record['multiply_adds_of_convolutions_and_dense'] == 1_814_073_344
  assert record['batch_size'] == 4
  assert record['stages']['stage2']['output_size'] == [28, 28]
  for key in ('parameters', 'multiply_adds', 'activations', 'training_bytes'):
    assert record[key] == sum(s[key] for s in record['stages'].values())


def test_sizes_and_types_may_be_others(run):
  def training_bytes(*args):
    return json.loads(run('resnet18', '--json', *args))['resnet18']

  small, large = training_bytes('--image-size=64'), training_bytes()
  assert small['activations'] * 12 < large['activations'] * 1.05
  assert small['parameters'] == large['parameters']
  half = training_bytes('--dtype=bfloat16')
  floats = 12 * large['parameters']
  # Half, but for the head, which stays in float32.
  assert half['training_bytes'] - floats == pytest.approx(
    (large['training_bytes'] - floats) / 2, rel=1e-3
  )


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['resnet5'], 'Did you mean: '),
    ([], 'Name networks, or give --all'),
    (['--all', 'resnet18'], 'not both'),
    (['resnet18', '--batch-size=0'], 'must be positive'),
    (['resnet18', '--image-size=99999'], '1 to 4096'),
    (['resnet18', '--batch-size=x'], 'invalid int'),
    (['resnet18', '--depth=3'], 'unrecognized arguments: --depth=3'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, capsys, args, message):
  with pytest.raises(SystemExit) as error:
    run(*args)
  assert error.value.code == 2
  out, err = capsys.readouterr()
  assert not out
  assert len(err.splitlines()) == 1
  assert message in err


@pytest.mark.slow
def test_all_networks_are_printed(run):
  text = run('--all')
  names = [line.partition(' ')[0] for line in text.splitlines()[1:]]
  assert names[: len(list_models())] == list_models()
