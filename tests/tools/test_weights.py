"""The weights tool: convert, compare, inspect."""

import os
import re
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from resnet.models import create_model, weights
from resnet.tools import command
from resnet.tools import weights as tool


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> what the tool prints; raises SystemExit for bad input."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['weights', *map(str, args)])
    command.run(lambda a: a.function(a), tool.parser())
    return capsys.readouterr().out

  return run


def variables(seed=0, num_classes=3):
  model = create_model('cifar_resnet8', num_classes=num_classes)
  images = np.zeros((1, 16, 16, 3), np.float32)
  return jax.jit(lambda key: model.init(key, images, train=False))(
    jax.random.key(seed)
  )


@pytest.fixture
def path(tmp_path):
  """A file in torchvision's names that says nothing of itself."""
  path = str(tmp_path / 'plain.safetensors')
  weights.save_weights(variables(), path)
  return path


PREPROCESSING = (
  '--mean=0.5,0.5,0.25',
  '--std=0.25,0.25,0.5',
  '--image-size=24',
  '--crop-share=0.75',
  '--interpolation=bicubic',
)


def test_convert_adds_what_the_source_does_not_say(run, path, tmp_path):
  names = tmp_path / 'names.txt'
  names.write_text('cat\ndog\nKatze\n')
  target = str(tmp_path / 'out.safetensors')
  out = run(
    'convert',
    path,
    target,
    '--model=cifar_resnet8',
    *PREPROCESSING,
    f'--class-names={names}',
  )
  assert 'cifar_resnet8, 3 classes' in out
  assert weights.open_source(target).metadata == weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.5, 0.5, 0.25),
      std=(0.25, 0.25, 0.5),
      image_size=24,
      crop_share=0.75,
      interpolation='bicubic',
    ),
    class_names=('cat', 'dog', 'Katze'),
  )
  a, b = (safetensors.numpy.load_file(p) for p in (path, target))
  assert {k: v.tobytes() for k, v in a.items()} == {
    k: v.tobytes() for k, v in b.items()
  }
  # What a source says stays.
  again = str(tmp_path / 'again.safetensors')
  run('convert', target, again)
  assert weights.open_source(again).metadata == (
    weights.open_source(target).metadata
  )


def test_compare_shows_where_two_networks_part(run, path, tmp_path):
  changed = variables()
  kernel = changed['params']['stage2_block1']['conv1']['kernel']
  changed['params']['stage2_block1']['conv1']['kernel'] = 1.5 * kernel
  other = str(tmp_path / 'other.safetensors')
  weights.save_weights(changed, other)
  out = run('compare', path, other, '--model=cifar_resnet8', '--image-size=16')
  rows = dict(
    re.findall(r'^(\w+) +(\d\.\d+e[+-]\d+) ', out, flags=re.MULTILINE)
  )
  order = ['stem', 'stage1', 'stage2', 'stage3', 'pooled', 'logits']
  assert list(rows) == order
  assert [float(rows[name]) > 0 for name in order] == [
    False,
    False,
    *[True] * 4,
  ]
  same = run('compare', path, path, '--model=cifar_resnet8', '--image-size=16')
  assert same.count('0.000e+00   0.000e+00') == 6


def test_compare_leaves_out_what_has_another_size(run, path, tmp_path):
  other = str(tmp_path / 'other.safetensors')
  weights.save_weights(variables(num_classes=5), other)
  out = run('compare', path, other, '--model=cifar_resnet8', '--image-size=16')
  assert re.search(r'^logits +not compared: 3 and 5$', out, re.MULTILINE)
  assert out.count('0.000e+00   0.000e+00') == 5


def test_inspect_tells_what_fits(run, path):
  out = run('inspect', path, '--tensors')
  assert '44 tensors' in out
  assert re.search(r'^fits +cifar_resnet8$', out, re.MULTILINE)
  assert re.search(
    r'^conv1.weight +float32 \[16, 3, 3, 3\]$', out, re.MULTILINE
  )


def test_inspect_says_where_nothing_fits(run, tmp_path):
  path = str(tmp_path / 'x.safetensors')
  safetensors.numpy.save_file({'x': np.zeros(3, np.float32)}, path)
  assert 'no network here' in run('inspect', path)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['convert', '{path}', 'x.safetensors'], 'It fits: cifar_resnet8.'),
    (['convert', '{path}', 'x.pth'], 'must end in .safetensors'),
    (
      ['convert', '{path}', 'x.safetensors', '--model=resnet18'],
      'fc.weight',
    ),
    (
      [
        'convert',
        '{path}',
        'x.safetensors',
        '--model=cifar_resnet8',
        '--mean=1',
      ],
      'whole or not at all: --std',
    ),
    (['convert', '{path}', 'x.safetensors', '--mean=a,b'], '--mean'),
    (
      [
        'convert',
        '{path}',
        'x.safetensors',
        '--model=cifar_resnet8',
        '--class-names={path}.txt',
      ],
      'cannot be read',
    ),
    (['inspect', '/no/where'], 'no weights at'),
    (['compare', '{path}', '{path}'], 'give --model'),
    (
      [
        'compare',
        '{path}',
        '{path}',
        '--model=cifar_resnet8',
        '--image-size=0',
      ],
      'must be positive',
    ),
    (['melt'], 'invalid choice'),
    ([], 'COMMAND'),
  ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_file(
  run, path, capsys, tmp_path, monkeypatch, args, message
):
  monkeypatch.chdir(tmp_path)
  before = os.listdir(tmp_path)
  with pytest.raises(SystemExit) as error:
    run(*(arg.format(path=path) for arg in args))
  assert error.value.code == 2
  out, err = capsys.readouterr()
  assert not out
  assert len(err.splitlines()) == 1
  assert message in err
  assert os.listdir(tmp_path) == before
