"""Weights of Flax's ImageNet example and of jax-resnet; msgpack and .npz files.

The network is a fixture with the example's names and padding, not the example.
"""

import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
from flax import serialization, traverse_util
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from resnet import weights
from resnet.errors import InputError
from resnet.inference import network
from resnet.models import create_model
from resnet.run.initialize import InitialWeights
from resnet.weights.sources import PACKAGED
from tests.networks import open_shapes

_SMALL = {'stage_sizes': (2, 1), 'num_filters': 8}
_conv = functools.partial(nn.Conv, use_bias=False)  # Pads 'SAME'.
_norm = functools.partial(nn.BatchNorm, use_running_average=True)


class ResNetBlock(nn.Module):
  filters: int
  strides: int
  layers = ((3, 1), (3, 1))  # Sizes of kernels and ratios of widths.

  @nn.compact
  def __call__(self, x):
    y, strides = x, self.strides
    for k, (size, ratio) in enumerate(self.layers):
      y = nn.relu(y) if k else y
      stride, strides = (1, strides) if size == 1 else (strides, 1)
      y = _norm()(_conv(ratio * self.filters, (size, size), stride)(y))
    if x.shape != y.shape:
      x = _conv(y.shape[-1], (1, 1), self.strides, name='conv_proj')(x)
      x = _norm(name='norm_proj')(x)
    return nn.relu(x + y)


class BottleneckResNetBlock(ResNetBlock):
  layers = ((1, 1), (3, 1), (1, 4))


class Example(nn.Module):
  block: type[ResNetBlock] = ResNetBlock
  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
  num_filters: int = 64

  @nn.compact
  def __call__(self, x):
    x = _conv(self.num_filters, (7, 7), 2, padding=3, name='conv_init')(x)
    x = nn.relu(_norm(name='bn_init')(x))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for stage, size in enumerate(self.stage_sizes):
      for block in range(size):
        strides = 2 if stage and not block else 1
        x = self.block(self.num_filters * 2**stage, strides)(x)
    return nn.Dense(5)(x.mean((1, 2)))

  def shapes(self):
    images = jnp.zeros((1, 32, 32, 3))
    tree = jax.eval_shape(self.init, jax.random.key(0), images)
    return {key: x.shape for key, x in _flatten(tree).items()}


def _flatten(tree, sep='/') -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep=sep)


@functools.cache
def _small():
  """Returns a small network's random variables by key, and as a tree."""
  rng, state = np.random.default_rng(0), {}
  for key, shape in Example(**_SMALL).shapes().items():
    mean, std = (0, 0.2) if key.endswith('kernel') else (1, 0.1)
    state[key] = rng.normal(mean, std, shape).astype(np.float32)
  return state, traverse_util.unflatten_dict(state, sep='/')


def _in_jax_resnet(key):
  """Returns jax-resnet's key for Flax's, in a network of 16 blocks."""
  for old, new in (
    (r'/(Conv|BatchNorm)_(.)/', r'/ConvBlock_\2/\1_0/'),
    ('conv_init', 'layers_0/ConvBlock_0/Conv_0'),
    ('bn_init', 'layers_0/ConvBlock_0/BatchNorm_0'),
    ('conv_proj', 'ResNetSkipConnection_0/ConvBlock_0/Conv_0'),
    ('norm_proj', 'ResNetSkipConnection_0/ConvBlock_0/BatchNorm_0'),
    ('Dense_0', 'layers_19'),
    (r'\w*ResNetBlock_(\d+)', lambda found: f'layers_{int(found[1]) + 2}'),
  ):
    key = re.sub(old, new, key)
  return key


@pytest.mark.parametrize('library', ['flax', 'jax-resnet'])
@pytest.mark.parametrize(
  ('name', 'block'),
  [('resnet34', ResNetBlock), ('resnet50', BottleneckResNetBlock)],
)
def test_networks_have_the_arrays_of_the_libraries(library, name, block):
  rename = _in_jax_resnet if library == 'jax-resnet' else str
  shapes = {rename(key): x for key, x in Example(block).shapes().items()}
  one = rename(f'params/{block.__name__}_10/Conv_1/kernel')
  source = open_shapes(shapes, lambda key: np.full(shapes[key], key == one))
  assert source.naming.name == library
  variables = weights.read_stored(source, name)
  places = [key for key, x in _flatten(variables).items() if x.any()]
  assert places == ['params/stage3_block4/conv2/kernel']
  with pytest.raises(InputError, match=f'{library} has no network'):
    weights.check_stored(source, 'preact_resnet50')
  with pytest.raises(InputError, match=f"'{library}' cannot be written"):
    weights.to_state_dict(name, variables, library)


def test_logits_equal_those_of_flax_at_the_sizes_of_the_note():
  _, tree = _small()
  variables = weights.from_state_dict('resnet18', tree, **_SMALL)
  model = create_model('resnet18', num_classes=5, **_SMALL)
  images = np.random.default_rng(1).standard_normal((2, 65, 65, 3), np.float32)
  errors = []
  for x in (images, images[:, 1:, 1:]):
    ours = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    theirs = jax.jit(Example(**_SMALL).apply)(tree, x)
    errors.append(np.abs(ours - theirs).max())
  assert errors[0] < 1e-4 < 1e-2 < errors[1]


@pytest.mark.parametrize('kind', ['npz', 'msgpack', 'ours'])
def test_files_are_found_by_their_contents(tmp_path, kind):
  state, tree = _small()
  expected = weights.from_state_dict('resnet18', state, **_SMALL)
  path = tmp_path / 'checkpoint_379'
  with open(path, 'wb') as file:
    if kind == 'npz':
      np.savez(file, **state)
    elif kind == 'ours':
      np.savez_compressed(file, **_flatten(expected, '.'))
    else:
      # This step makes byte 8 that of a file of safetensors, '{'.
      training = {'step': 379, **tree, 'opt_state': {'0': {'m': tree}}}
      file.write(serialization.msgpack_serialize(training))
  variables = weights.load_weights(str(path), 'resnet18', **_SMALL)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  data = path.read_bytes()
  for size in (20, 1000, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:size])
    with pytest.raises(InputError, match='checkpoint_379'):
      weights.open_stored(str(path))


def test_hostile_files_are_refused(tmp_path):
  path, key = str(tmp_path / 'w'), 'params/bn_init/scale'

  def refuse(message, save, **arrays):
    with open(path, 'wb') as file:
      save(file, **arrays)
    with pytest.raises(InputError, match=message):
      weights.load_weights(path, 'resnet18', **_SMALL)

  state = dict(_small()[0])
  objects = {key: np.array([{}] * 8, object)}
  refuse('is object, not one of float32', np.savez, **state | objects)
  large = {key: np.zeros(10**6, np.float32)}
  refuse(r'shape \[1000000\]', np.savez, **state | large)
  refuse('over eight times as large', np.savez_compressed, **state | large)
  huge = msgpack.packb(((10**9,), 'float32', b'1234'))
  for value, message in (
    (msgpack.ExtType(1, huge), 'does not have the shape'),
    (msgpack.ExtType(7, huge), 'is not an array'),
    ([[]] * 9, 'damaged'),
    ({'a' * 300: 1}, 'max_str_len'),
    ({None: 1}, 'is not a string'),
  ):
    refuse(
      message,
      lambda file, **tree: msgpack.pack(tree, file),
      params={'x': value},
    )


def test_the_note_is_shown(tmp_path, monkeypatch, capsys, tool):
  path, note = str(tmp_path / 'w'), '32k + 1, such as 225; fine-tune before use'
  state: dict[str, Any] = {
    key: np.ones(shape, np.float16)
    for key, shape in Example(stage_sizes=(2, 2, 2, 2)).shapes().items()
  }
  with open(path, 'wb') as file:
    np.savez(file, **state)
  shown = tool('weights', 'inspect', path).stdout
  assert note in shown and 'fits          resnet18\n' in shown
  source = weights.open_stored(path)
  fields = {'model': 'resnet18', 'overrides': {}, 'new_head': False}
  assert note in InitialWeights(source=source, **fields).describe()
  preprocessing = weights.open_stored(PACKAGED).metadata.preprocessing
  metadata = weights.Metadata(preprocessing=preprocessing)
  source = dataclasses.replace(source, metadata=metadata)
  monkeypatch.setattr(network, 'open_stored', lambda _: source)
  network.read_weights(path, 'resnet18')
  assert note in capsys.readouterr().err
