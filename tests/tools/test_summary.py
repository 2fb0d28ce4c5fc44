"""The summary tool: what it prints is what the papers print."""

import re

import pytest

from tests.programs import ROOT, assert_refused


def test_one_network_is_printed_as_table_1(tool):
  """He et al. 2016, Table 1, the column of 50 layers."""
  text = tool('summary', 'resnet50').stdout
  cells = [re.split(r' {2,}', line) for line in text.splitlines()]
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
    ('lecture_resnet50', '3x3 128; [1x1 64, 3x3 64, 1x1 128] x 3'),
  ],
)
def test_layers_of_other_networks(tool, name, cell):
  assert f' {cell} ' in tool('summary', name).stdout


def numbers(text, row):
  """Returns parameters, multiply-adds, activations and memory of a row."""
  (line,) = (x for x in text.splitlines() if x.startswith(row))
  found = re.findall(r'\d[\d,.]*', line)[-4:]
  return [float(x.replace(',', '')) for x in found]


def test_figures_add_up_and_follow_size_and_type(tool):
  def summary(*args):
    return tool('summary', 'resnet18', '--batch-size=64', *args).stdout

  text = summary()
  stages = [f'stage{i}' for i in range(1, 5)]
  parts = [numbers(text, part) for part in ('stem', *stages, 'head')]
  large = numbers(text, 'resnet18')
  assert large[0] == 11_689_512
  assert list(map(sum, zip(*parts, strict=True))) == pytest.approx(
    large, abs=0.004
  )
  small = numbers(summary('--image-size=64'), 'resnet18')
  assert small[0] == large[0] and small[2] * 11 < large[2]
  half = numbers(summary('--dtype=bfloat16'), 'resnet18')
  floats = 12 * large[0] / 1e9
  # Half, but for the head, which stays in float32.
  assert half[3] - floats == pytest.approx((large[3] - floats) / 2, rel=2e-3)


def test_one_network_in_markdown_has_its_row_of_the_table_of_all(tool):
  def row(text):
    lines = (re.sub(' +', ' ', line) for line in text.splitlines())
    (line,) = (x for x in lines if x.startswith('| cifar_resnet20 | 32 |'))
    return line

  text = tool('summary', 'cifar_resnet20', '--markdown').stdout
  assert row(text) == row((ROOT / 'docs' / 'networks.md').read_text())


def test_bad_input_is_refused(tool):
  assert_refused(tool('summary'), 'Type the names of networks or --all')
  result = tool('summary', 'resnet18', '--image-size=0')
  assert_refused(result, "--image-size: '0' is not an integer of 1 or more")
