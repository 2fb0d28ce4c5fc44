"""Conversion, files and errors of weights."""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from resnet import weights
from resnet.errors import InputError
from resnet.weights import Metadata
from tests.networks import draw_variables, make_preprocessing

_PREPROCESSING = make_preprocessing(224)
_SMALL = {'stage_sizes': (2, 1), 'num_filters': 8}
_METADATA = Metadata(
  model='cifar_resnet8',
  preprocessing=_PREPROCESSING,
  class_names=('cat', 'dog', 'Katze'),
)


@functools.cache
def _variables(name='cifar_resnet8', **overrides):
  return draw_variables(name, size=32, num_classes=3, **overrides)[1]


def _assert_equal(actual, expected):
  """Asserts trees of the same structure, dtypes, shapes and numbers."""
  assert_equal = functools.partial(np.testing.assert_array_equal, strict=True)
  jax.tree.map(assert_equal, actual, expected)


def _state(**changes):
  state = weights.to_state_dict('cifar_resnet8', _variables())
  for key, value in changes.items():
    state[key.replace('__', '.')] = value
  return state


@pytest.mark.parametrize(
  'name', ['cifar_resnet8', 'resnetrs50', 'preact_resnet18', 'lecture_resnet50']
)
def test_conversion_to_torch_and_back_is_exact(name):
  variables = _variables(name, **_SMALL)
  state = weights.to_state_dict(name, variables, **_SMALL)
  again = weights.from_state_dict(name, state, **_SMALL)
  _assert_equal(again, {'batch_stats': {}, **variables})


def test_state_dicts_have_the_layouts_and_names_of_pytorch():
  variables = _variables('resnet18', **_SMALL)
  params, stats = variables['params'], variables['batch_stats']
  state = weights.to_state_dict('resnet18', variables, **_SMALL)
  kernel = params['stage2_block1']['shortcut_conv']['kernel']
  np.testing.assert_array_equal(
    state['layer2.0.downsample.0.weight'][:, :, 0, 0], kernel[0, 0].T
  )
  np.testing.assert_array_equal(
    state['conv1.weight'][7, 2], params['stem_conv']['kernel'][:, :, 2, 7]
  )
  np.testing.assert_array_equal(state['fc.weight'], params['head']['kernel'].T)
  np.testing.assert_array_equal(
    state['layer1.1.bn2.running_var'], stats['stage1_block2']['bn2']['var']
  )
  assert state['bn1.num_batches_tracked'] == np.int64(0)


def test_conversion_shares_no_memory():
  state = _state()
  variables = weights.from_state_dict('cifar_resnet8', state)
  again = weights.to_state_dict('cifar_resnet8', variables)
  for leaf in jax.tree.leaves(variables):
    leaf += 1.0
  assert {k: v.tobytes() for k, v in again.items()} == {
    k: v.tobytes() for k, v in state.items()
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'fc__bias': None}, r"no tensor 'fc.bias'"),
    ({'extra': np.zeros(3, np.float32)}, r"'extra', but the network does not"),
    (
      {'layer2__0__bn1__weight': np.zeros(3, np.float32)},
      r"'layer2.0.bn1.weight' .* \[3\]; the network has \[32\]",
    ),
    ({'fc__weight': np.zeros((3, 64))}, r"'fc.weight' .* float64, not one of"),
    (
      {'bn1__num_batches_tracked': np.zeros((), np.float32)},
      r"'bn1.num_batches_tracked' .* not one integer",
    ),
  ],
)
def test_errors_name_the_tensor_that_does_not_fit(changes, message):
  state = _state(**changes)
  state = {key: value for key, value in state.items() if value is not None}
  with pytest.raises(InputError, match=message):
    weights.from_state_dict('cifar_resnet8', state)


def test_keys_that_are_not_strings_are_refused():
  with pytest.raises(InputError, match='has the key 0: give strings'):
    weights.from_state_dict('cifar_resnet8', {0: np.zeros(3, np.float32)})


def test_variables_of_another_network_are_refused():
  with pytest.raises(InputError, match='variables given for resnet18'):
    weights.to_state_dict('resnet18', _variables())
  with pytest.raises(InputError, match='timm has no network'):
    weights.to_state_dict(
      'preact_resnet18',
      _variables('preact_resnet18', **_SMALL),
      'timm',
      **_SMALL,
    )


def test_timm_naming_moves_the_stem_norm_of_v2():
  name = 'preact_resnet50'
  variables = jax.tree.map(np.abs, _variables(name, **_SMALL))
  state = weights.to_state_dict(name, variables, naming='timm', **_SMALL)
  scale = variables['params']['stem_bn']['scale']
  np.testing.assert_array_equal(state['stages.0.blocks.0.norm1.weight'], scale)
  assert state['head.fc.weight'].shape == (3, 64, 1, 1)
  again = weights.from_state_dict(name, state, **_SMALL)
  _assert_equal(again, variables)
  # Pooling before a batch norm is another network where it turns the order.
  state['stages.0.blocks.0.norm1.weight'][3] = -0.1
  with pytest.raises(InputError, match=r'norm1.weight. has numbers below zero'):
    weights.from_state_dict(name, state, **_SMALL)


# Files.


@pytest.fixture
def path(tmp_path):
  """A good file."""
  path = str(tmp_path / 'weights.safetensors')
  weights.save_weights(_variables(), path, metadata=_METADATA)
  return path


def test_a_file_keeps_weights_and_metadata(path):
  _assert_equal(weights.load_weights(path, 'cifar_resnet8'), _variables())
  assert weights.open_stored(path).metadata == _METADATA
  weights.save_weights(_variables(), path)
  assert weights.open_stored(path).metadata == Metadata()


def test_a_failed_write_leaves_no_file(tmp_path):
  target = tmp_path / 'taken'
  target.mkdir()
  for path in (target, tmp_path / 'no' / 'where'):
    with pytest.raises(InputError, match='cannot be written'):
      weights.save_weights(_variables(), str(path))
  assert os.listdir(tmp_path) == ['taken']
  assert os.listdir(target) == []


def test_weights_of_another_network_of_the_same_shapes_are_refused(path):
  with pytest.raises(InputError, match='weights of cifar_resnet8, not of'):
    weights.load_weights(path, 'cifar_plain20')
  with pytest.raises(InputError, match="with shortcut 'A', not 'none'"):
    weights.load_weights(path, 'cifar_resnet8', shortcut='none')
  metadata = Metadata(model='cifar_resnet8', shortcut='none')
  weights.save_weights(_variables(), path, metadata=metadata)
  weights.load_weights(path, 'cifar_resnet8', shortcut='none')


def _forge(**fields):
  """Returns a function that changes the header's entry of 'fc.bias'."""

  def damage(raw):
    length = int.from_bytes(raw[:8], 'little')
    header = json.loads(raw[8 : 8 + length])
    header['fc.bias'].update(fields)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, 'little') + text + raw[8 + length :]

  return damage


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_forge(shape=[2**40, 2**40]), 'damaged'),
    (_forge(shape='many'), 'damaged'),
    (_forge(dtype='I32'), "'fc.bias' .* I32, not one of"),
    (lambda raw: raw[:-5], 'damaged'),
    (lambda raw: (2**40).to_bytes(8, 'little') + raw[8:], 'damaged'),
    (lambda raw: raw[:5], 'damaged'),
    (lambda _: (9**5).to_bytes(8, 'little') + b'{' * 9**5, 'damaged'),
  ],
)
def test_a_damaged_file_is_refused(path, damage, message):
  file = pathlib.Path(path)
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(InputError, match=message) as error:
    weights.load_weights(path, 'cifar_resnet8')
  assert path in str(error.value)


def test_damaged_metadata_are_refused(tmp_path):
  path = str(tmp_path / 'weights.safetensors')
  metadata = {'preprocessing': '{"mean": 3}'}
  safetensors.numpy.save_file(_state(), path, metadata=metadata)
  with pytest.raises(InputError, match=r'metadata of .* damaged'):
    weights.load_weights(path, 'cifar_resnet8')


@pytest.fixture
def index(tmp_path):
  """An index of two files that share the tensors."""
  state = _state()
  shards = {key: f'part{len(key) % 2}.safetensors' for key in state}
  for name in set(shards.values()):
    part = {key: state[key] for key, shard in shards.items() if shard == name}
    safetensors.numpy.save_file(part, tmp_path / name)
  path = tmp_path / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': shards}))
  return path


def test_the_files_of_an_index_are_joined(index):
  for source in (index, index.parent):
    loaded = weights.load_weights(str(source), 'cifar_resnet8')
    _assert_equal(loaded, _variables())


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"weight_map": {"x": "part2.safetensors"}}', 'no such file is beside it'),
    ('{"weight_map": {"x": "../part0.safetensors"}}', 'no such file is beside'),
    ('{"weight_map": {"x": ".."}}', 'no such file is beside it'),
    ('{"weight_map": {"x": ["part0.safetensors"]}}', 'no such file is beside'),
    ('{"weight_map": {"x": "part0.safetensors"}}', "'x', but .* not hold it"),
    ('{"weight_map": 3}', 'is damaged'),
    ('{', 'is damaged'),
  ],
)
def test_a_damaged_index_is_refused(index, text, message):
  index.write_text(text)
  with pytest.raises(InputError, match=message):
    weights.open_stored(str(index))


@pytest.mark.parametrize(
  'fields',
  [
    {'std': (0.0,) * 3},
    {'mean': (float('nan'),) * 3},
    {'image_size': 0},
    {'crop_share': -1.0},
  ],
)
def test_impossible_preprocessing_is_refused(fields):
  with pytest.raises(ValueError, match=r'mean|channels|size'):
    dataclasses.replace(_PREPROCESSING, **fields)


# Orbax and workdirs.


def test_orbax_checkpoints_of_variables_are_loaded(tmp_path):
  path = str(tmp_path / 'checkpoint')
  ocp.PyTreeCheckpointer().save(path, _variables())
  _assert_equal(weights.load_weights(path, 'cifar_resnet8'), _variables())
  with pytest.raises(InputError, match=r"'params/head/kernel' .* \[512, 3\]"):
    weights.load_weights(path, 'resnet18')


def test_folders_without_weights_are_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='neither a workdir nor an Orbax'):
    weights.load_weights(str(tmp_path), 'cifar_resnet8')
  with pytest.raises(InputError, match=r"no weights at '/no/where'"):
    weights.load_weights('/no/where', 'cifar_resnet8')


def test_names_of_classes_are_dropped_with_the_head():
  assert _METADATA.names_of(0) == ()
  assert _METADATA.names_of(4) == ('cat', 'dog', 'Katze', '3')
