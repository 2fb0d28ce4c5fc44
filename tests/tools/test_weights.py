"""The weights tool: convert, inspect."""

import os
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from resnet import weights
from resnet.checkpoint_folder import score
from resnet.errors import InputError
from resnet.inference.network import read_weights
from tests.networks import draw_variables
from tests.programs import assert_refused
from tests.runs import resolve, save_run

MODEL = '--model=cifar_resnet8'


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A file in torchvision's names, without metadata."""
  _, variables = draw_variables('cifar_resnet8', size=16, num_classes=3)
  path = str(tmp_path_factory.mktemp('weights') / 'plain.safetensors')
  weights.save_weights(variables, path)
  return path


def test_convert_adds_missing_metadata(tool, path, tmp_path):
  names = tmp_path / 'names.txt'
  names.write_text('cat\nn01440764\nKatze\n')
  target, again = (str(tmp_path / f'{name}.safetensors') for name in 'ab')
  result = tool(
    *('weights', 'convert', path, target, MODEL, f'--class-names={names}'),
    *('--mean=0.5,0.5,0.25', '--std=0.25,0.25,0.5', '--image-size=24'),
    *('--crop-share=0.75', '--interpolation=bicubic'),
  )
  assert 'cifar_resnet8, 3 classes' in result.stdout
  assert 'class_names   cat, tench, Katze ... (3)' in result.stdout
  metadata = weights.open_stored(target).metadata
  assert metadata == weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.5, 0.5, 0.25),
      std=(0.25, 0.25, 0.5),
      image_size=24,
      crop_share=0.75,
      interpolation='bicubic',
    ),
    class_names=('cat', 'n01440764', 'Katze'),
  )
  a, b = (safetensors.numpy.load_file(p) for p in (path, target))
  assert {k: v.tobytes() for k, v in a.items()} == {
    k: v.tobytes() for k, v in b.items()
  }
  # What a source says stays.
  tool('weights', 'convert', target, again)
  assert weights.open_stored(again).metadata == metadata


def test_inspect_names_the_networks_that_fit(tool, path, tmp_path):
  out = tool('weights', 'inspect', path, '--tensors').stdout
  assert '44 tensors' in out
  assert re.search(r'^fits +cifar_resnet8$', out, re.MULTILINE)
  other = str(tmp_path / 'x.safetensors')
  state = safetensors.numpy.load_file(path)
  state = {f'module.{key}': value for key, value in state.items()}
  safetensors.numpy.save_file(state, other)
  out = tool('weights', 'inspect', other).stdout
  assert 'source names  torchvision' in out
  assert 'read without the prefix module.' in out
  assert 'cifar_resnet8' in out
  assert (
    'read without the prefix module.' in weights.open_stored(other).remarks()
  )
  safetensors.numpy.save_file({'x': np.zeros(3, np.float32)}, other)
  assert 'no known network' in tool('weights', 'inspect', other).stdout


def test_networks_with_other_shortcuts_are_recognised(tool, tmp_path):
  fields = {'shortcut': 'B'}
  _, variables = draw_variables(
    'cifar_resnet8', size=16, num_classes=3, **fields
  )
  source, target = (str(tmp_path / f'{name}.safetensors') for name in 'ab')
  weights.save_weights(variables, source)
  result = tool('weights', 'inspect', source)
  assert re.search(r'^fits +cifar_resnet8$', result.stdout, re.MULTILINE)
  tool('weights', 'convert', source, target, MODEL)
  assert weights.open_stored(target).metadata.overrides == fields


def test_convert_writes_folders_for_the_hub(tool, tmp_path):
  _, variables = draw_variables('resnet18', size=16, num_classes=3)
  source, target = str(tmp_path / 'a.safetensors'), str(tmp_path / 'net')
  weights.save_weights(variables, source)
  tool(
    *('weights', 'convert', source, target, '--model=resnet18'),
    *('--mean=0.5,0.5,0.25', '--std=0.25,0.25,0.5', '--image-size=24'),
    *('--crop-share=0.75', '--interpolation=bicubic'),
    '--naming=transformers',
  )
  assert weights.open_stored(target).naming.name == 'transformers'
  files = ['README.md', 'config.json', 'model.safetensors']
  assert sorted(os.listdir(target)) == [*files, 'preprocessor_config.json']


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ('convert {path} x.safetensors', 'It fits: cifar_resnet8.'),
    ('convert {path} x.pth', 'must end in .safetensors'),
    ('convert {path} x {model}', 'the network and its preprocessing must'),
    ('convert {path} x.safetensors {model} --mean=1', '--std'),
  ],
)
def test_bad_input_is_refused_and_nothing_is_written(
  tool, path, tmp_path, monkeypatch, args, message
):
  monkeypatch.chdir(tmp_path)
  result = tool('weights', *args.format(path=path, model=MODEL).split())
  assert_refused(result, message)
  assert not result.stdout and not os.listdir(tmp_path)


def test_a_run_gives_its_averages_its_interpolation_and_numbers_for_names(
  tool, tmp_path
):
  run = resolve(
    ema_decay=0.9, data__interpolation='bicubic', model__num_classes=12
  )
  _, variables = draw_variables('cifar_resnet8', size=16, num_classes=12)
  ema = jax.tree.map(lambda x: 2 * x, variables)
  (tmp_path / 'run').mkdir()
  save_run(tmp_path / 'run', run, variables, ema)
  for suffix, expected in (('', ema), ('#raw', variables)):
    found = read_weights(f'{tmp_path}/run{suffix}')
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
  assert found.preprocessing.interpolation == 'bicubic'
  assert found.class_names[-2:] == ('10', '11')
  target = tmp_path / 'a.safetensors'
  result = tool('weights', 'convert', tmp_path / 'run', target)
  assert 'moving averages' in result.stdout
  assert weights.open_stored(target).metadata.ema is True
  # A file beside its checkpoints does not replace a run.
  target = target.rename(tmp_path / 'run' / 'model.safetensors')
  assert weights.open_stored(str(tmp_path / 'run')).naming.name == 'orbax'
  # The best checkpoint is that of the averages, too.
  assert score({'eval/top1': 0.9, 'eval_ema/top1': 0.5}) == 0.5
  with pytest.raises(InputError, match='leave #raw out'):
    weights.open_stored(f'{target}#raw')
