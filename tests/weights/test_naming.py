"""Tensor names of each library; parity of networks whose channels differ."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet import weights
from resnet.errors import InputError
from resnet.weights.convert import find_overrides
from resnet.weights.naming import NAMINGS, find_naming
from tests.networks import draw_variables, open_shapes

_SMALL = {'stage_sizes': (2, 1), 'num_filters': 8}


@functools.cache
def _network(name, **overrides):
  return draw_variables(name, size=16, num_classes=5, **overrides)


def _bits(arrays):
  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  return {str(path): (x.shape, x.dtype, x.tobytes()) for path, x in leaves}


def _refuse(name, state, message):
  with pytest.raises(InputError, match=message):
    weights.from_state_dict(name, state)


_CASES = [
  ('torchvision', 'resnet18', _SMALL),
  ('timm', 'preact_resnet50', _SMALL),
  ('transformers', 'resnet18', _SMALL),
  ('transformers', 'resnet50', _SMALL),
  ('akamaster', 'cifar_resnet8', {}),
  ('akamaster', 'cifar_resnet20', {'shortcut': 'B'}),
]


@pytest.mark.parametrize(('naming', 'name', 'fields'), _CASES)
def test_namings_are_found_and_return_the_same_bits(naming, name, fields):
  _, variables = _network(name, **fields)
  state = weights.to_state_dict(name, variables, naming, **fields)
  assert find_naming(state).name == naming
  read = weights.from_state_dict(name, state, **fields)
  assert _bits(read) == _bits(variables)
  again = weights.to_state_dict(name, read, naming, **fields)
  assert _bits(again) == _bits(state)
  assert {case[0] for case in _CASES} == set(NAMINGS)


def _transformers_tensors(depths, layers, expansion, num_classes):
  """Keys and shapes of ResNetForImageClassification, from its source code."""
  tensors = {}

  def add(name, outputs, inputs, size):
    tensors[f'{name}.convolution.weight'] = (outputs, inputs, size, size)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      tensors[f'{name}.normalization.{leaf}'] = (outputs,)

  add('resnet.embedder.embedder', 64, 3, 7)
  inputs = 64
  for stage, depth in enumerate(depths):
    width = 64 * 2**stage
    for block in range(depth):
      name = f'resnet.encoder.stages.{stage}.layers.{block}'
      if block == 0 and (stage or expansion > 1):
        add(f'{name}.shortcut', width * expansion, inputs, 1)
      for layer, size in enumerate(layers):
        is_last = layer == len(layers) - 1
        outputs = width * expansion if is_last else width
        add(f'{name}.layer.{layer}', outputs, inputs, size)
        inputs = outputs
  tensors['classifier.1.weight'] = (num_classes, inputs)
  tensors['classifier.1.bias'] = (num_classes,)
  return tensors


@pytest.mark.parametrize(
  ('name', 'args'),
  [
    ('resnet18', ((2, 2, 2, 2), (3, 3), 1, 21)),
    ('resnet50', ((3, 4, 6, 3), (1, 3, 1), 4, 1000)),
  ],
)
def test_networks_have_the_tensors_of_transformers(name, args):
  tensors = _transformers_tensors(*args)
  source = open_shapes(tensors)
  assert source.naming.name == 'transformers'
  weights.check_stored(source, name)
  with pytest.raises(InputError, match='transformers has no network'):
    weights.check_stored(source, f'{name}d')
  # `ResNetModel`, which has no head.
  bare = {
    key.removeprefix('resnet.'): value
    for key, value in tensors.items()
    if key.startswith('resnet.')
  }
  source = open_shapes(bare, np.asarray)
  weights.check_stored(source, name, needs_head=False)
  key = 'encoder.stages.0.layers.0.layer.0.convolution.weight'
  assert str(source.read(f'resnet.{key}')) == key


@pytest.mark.parametrize(
  ('name', 'kind', 'sizes'),
  [('resnet18', 'basic', (8, 16)), ('resnet50', 'bottleneck', (32, 64))],
)
def test_logits_equal_those_of_transformers(name, kind, sizes):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model, variables = _network(name, **_SMALL)
  config = transformers.ResNetConfig(
    embedding_size=8,
    hidden_sizes=sizes,
    depths=(2, 1),
    layer_type=kind,
    num_labels=5,
  )
  theirs = transformers.ResNetForImageClassification(config).eval()
  state = weights.to_state_dict(name, variables, 'transformers', **_SMALL)
  theirs.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
  images = np.random.default_rng(1).standard_normal((3, 33, 33, 3), np.float32)
  with torch.no_grad():
    nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = theirs(nchw).logits.numpy()
  logits = jax.jit(functools.partial(model.apply, train=False))(
    variables, images
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_networks_have_the_tensors_of_chenyaofo():
  """Keys and shapes of cifar10_resnet20, from its source code."""
  layers = {'conv1': (16, 3, 3, 3), 'bn1': (16,)}
  inputs = 16
  for stage, width in enumerate((16, 32, 64), 1):
    for block in range(3):
      name = f'layer{stage}.{block}'
      layers[f'{name}.conv1'] = (width, inputs, 3, 3)
      layers[f'{name}.conv2'] = (width, width, 3, 3)
      layers[f'{name}.bn1'] = layers[f'{name}.bn2'] = (width,)
      if inputs != width:
        layers[f'{name}.downsample.0'] = (width, inputs, 1, 1)
        layers[f'{name}.downsample.1'] = (width,)
      inputs = width
  tensors = {'fc.weight': (10, 64), 'fc.bias': (10,)}
  for name, shape in layers.items():
    tensors[f'{name}.weight'] = shape
    for leaf in ('bias', 'running_mean', 'running_var'):
      if len(shape) == 1:
        tensors[f'{name}.{leaf}'] = shape
  source = open_shapes(tensors)
  fields = find_overrides(source, 'cifar_resnet20')
  assert fields == {'shortcut': 'B'}
  weights.check_stored(source, 'cifar_resnet20', **fields)
  with pytest.raises(InputError, match=r"has 'layer2\.0\.downsample"):
    weights.check_stored(source, 'cifar_resnet20')


def _akamaster(state, images):
  """The network of pytorch_resnet_cifar10 with one block a stage, option A."""

  def conv(name, x, stride=1):
    kernel = state[f'{name}.weight']
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, ((1, 1),) * 2)

  def norm(name, x):
    scale, bias, mean, var = (
      state[f'{name}.{leaf}'][None, :, None, None]
      for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

  x = jax.nn.relu(norm('bn1', conv('conv1', images.transpose(0, 3, 1, 2))))
  for stage in (1, 2, 3):
    name, stride = f'layer{stage}.0', 1 if stage == 1 else 2
    y = jax.nn.relu(norm(f'{name}.bn1', conv(f'{name}.conv1', x, stride)))
    y = norm(f'{name}.bn2', conv(f'{name}.conv2', y))
    pad = (y.shape[1] - x.shape[1]) // 2
    x = jnp.pad(
      x[:, :, ::stride, ::stride], ((0, 0), (pad, pad), *[(0, 0)] * 2)
    )
    x = jax.nn.relu(y + x)
  logits = x.mean((2, 3)) @ state['linear.weight'].T
  return logits + state['linear.bias'][None]


def test_logits_equal_those_of_akamaster():
  model, variables = _network('cifar_resnet8')
  state = weights.to_state_dict('cifar_resnet8', variables, 'akamaster')
  images = np.random.default_rng(1).standard_normal((3, 16, 16, 3), np.float32)
  ours = model.apply(variables, images, train=False)
  theirs = jax.jit(_akamaster)(state, images)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_network_with_other_shortcuts_is_refused():
  name, fields = 'cifar_resnet20', {'shortcut': 'B'}
  _, variables = _network(name, **fields)
  state = weights.to_state_dict(name, variables, 'akamaster', **fields)
  _refuse(name, state, "has 'layer2.0.shortcut.*', but the network does not")


def test_a_backbone_without_an_order_of_channels_is_refused():
  _, variables = _network('cifar_resnet8')
  state = weights.to_state_dict('cifar_resnet8', variables, 'akamaster')
  del state['linear.weight'], state['linear.bias']
  _refuse('cifar_resnet8', state, 'whose name would say how')
  _, variables = _network('resnet18', **_SMALL)
  state = weights.to_state_dict('resnet18', variables, **_SMALL)
  del state['fc.weight'], state['fc.bias']
  with pytest.raises(InputError, match=r'has no head \(fc.bias, fc.weight\)'):
    weights.from_state_dict('resnet18', state, **_SMALL)


@pytest.mark.parametrize(
  ('naming', 'name', 'fields'),
  [
    ('transformers', 'preact_resnet50', _SMALL),
    ('transformers', 'cifar_resnet8', {}),
    ('transformers', 'resnext50_32x4d', {'stage_sizes': (1, 1)}),
    ('transformers', 'wide_resnet50_2', _SMALL),
    ('transformers', 'plain18', _SMALL),
    ('transformers', 'resnet18', {**_SMALL, 'shortcut': 'A'}),
    ('transformers', 'resnet18', {**_SMALL, 'shortcut': 'C'}),
    ('akamaster', 'resnet18', _SMALL),
    ('akamaster', 'resnet18', {**_SMALL, 'num_filters': 16}),
    ('akamaster', 'cifar_resnet8', {'stage_sizes': (1, 1)}),
    ('akamaster', 'cifar_resnet8', {'num_filters': 8}),
    # These have the tensors of another network.
    ('transformers', 'resnetblur18', _SMALL),
    ('akamaster', 'cifar_plain20', {}),
    ('timm', 'resnet50_v1', _SMALL),
  ],
)
def test_networks_that_a_library_lacks_are_not_written(naming, name, fields):
  _, variables = _network(name, **fields)
  with pytest.raises(InputError, match=f'{naming} has no network'):
    weights.to_state_dict(name, variables, naming, **fields)


def test_files_of_networks_that_a_library_lacks_are_not_written(tmp_path):
  _, variables = _network('cifar_plain20')
  path, metadata = tmp_path / 'w', weights.Metadata(model='cifar_plain20')
  with pytest.raises(InputError, match="akamaster has no network 'cifar_plain"):
    weights.save_weights(
      variables, str(path), metadata=metadata, naming='akamaster'
    )
  with pytest.raises(InputError, match='needs the name of the network'):
    weights.save_weights(variables, str(path), naming='akamaster')
  assert not path.exists()


def test_the_assumption_about_padding_is_remarked():
  def remarks(name, **fields):
    state = weights.to_state_dict(name, _network(name, **fields)[1], **fields)
    return open_shapes({key: x.shape for key, x in state.items()}).remarks()

  (remark,) = remarks('cifar_resnet8')
  assert '(option A)' in remark
  assert not remarks('cifar_resnet20', shortcut='B')
  assert not remarks('resnet18')


def test_a_prefix_of_all_keys_is_left_out():
  _, variables = _network('cifar_resnet8')
  state = weights.to_state_dict('cifar_resnet8', variables, 'akamaster')
  prefixed = {f'module.model.{key}': value for key, value in state.items()}
  read = weights.from_state_dict('cifar_resnet8', prefixed)
  assert _bits(read) == _bits(variables)
  mixed = {**prefixed, 'module.queue': np.zeros(3, np.float32)}
  _refuse('cifar_resnet8', mixed, r"no tensor '.*Did you mean: model\.")
