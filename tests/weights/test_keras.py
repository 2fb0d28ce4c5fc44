"""Weights of Keras: its logits, its files, and what is refused."""

import sys

import jax
import numpy as np
import pytest

from resnet import weights
from resnet.errors import InputError
from resnet.inference.preprocessing import normalize
from resnet.models import create_model
from resnet.weights.convert import to_stored
from tests.networks import open_shapes
from tests.programs import assert_refused

NAME = 'resnet50_v1'


@pytest.fixture(scope='module')
def keras(tmp_path_factory):
  pytest.importorskip('h5py')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('KERAS_BACKEND', 'jax')
    patch.setenv('KERAS_HOME', str(tmp_path_factory.mktemp('keras')))
    yield pytest.importorskip('keras')


@pytest.fixture(scope='module')
def theirs(keras):
  """Keras' ResNet50 with random variables, biases and means included."""
  rng = np.random.default_rng(0)
  fields = {'weights': None, 'classes': 10, 'classifier_activation': None}
  fields['input_shape'] = (64, 64, 3)
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    model = keras.applications.ResNet50(**fields)
    for variable in model.weights:
      path, shape = variable.path, variable.shape
      std = np.prod(shape[:-1]) ** -0.5 if 'kernel' in path else 0.3
      values = rng.normal(0, std, shape)
      if path.endswith(('gamma', 'moving_variance')):
        values = rng.uniform(0.5, 1.5, shape)
      if path == 'conv1_bn/moving_variance':
        values *= 1e4  # Pixels are not divided by their deviation.
      variable.assign(values.astype(np.float32))
  return model


@pytest.fixture(scope='module')
def state(theirs):
  return {w.path: np.asarray(w.value) for w in theirs.weights}


def test_logits_are_those_of_keras_and_need_its_biases(keras, theirs, state):
  images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    preprocess = keras.applications.resnet.preprocess_input
    pixels = preprocess(images.astype(np.float32))
    expected = np.asarray(theirs(pixels, training=False))
  source = open_shapes({key: x.shape for key, x in state.items()})
  assert source.metadata.model == NAME
  with pytest.raises(InputError, match='of resnet50_v1, not of resnet50'):
    weights.check_stored(source, 'resnet50')
  pixels = normalize(images, source.metadata.preprocessing)
  model = create_model(NAME, num_classes=10)
  apply = jax.jit(lambda variables: model.apply(variables, pixels, train=False))
  logits = apply(weights.from_state_dict(NAME, state))
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  zeroed = {k: 0 * x if 'conv/bias' in k else x for k, x in state.items()}
  without = apply(weights.from_state_dict(NAME, zeroed))
  assert np.max(np.abs(without - expected)) > 0.1


def test_epsilon_and_biases_are_folded_with_one_rounding(state):
  state = {key: x * np.float32(1e-5) for key, x in state.items()}
  stats = weights.from_state_dict(NAME, state)['batch_stats']['stem_bn']
  wide = {key: x.astype(np.float64) for key, x in state.items()}
  mean = wide['conv1_bn/moving_mean'] - wide['conv1_conv/bias']
  var = wide['conv1_bn/moving_variance'] + 1e-8
  for name, expected in (('mean', mean), ('var', var)):
    np.testing.assert_array_equal(stats[name], expected.astype(np.float32))


# Keras converts its arrays in a way that NumPy deprecates.
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize('kind', ['keras 3', 'published', 'whole model'])
def test_files_give_the_same_bits(tool, theirs, state, tmp_path, kind):
  h5py = pytest.importorskip('h5py')
  path = tmp_path / 'a.weights.h5'
  if kind == 'keras 3':
    theirs.save_weights(path)
  else:
    with h5py.File(path, 'w') as file:
      root = file
      if kind == 'whole model':
        root = file.create_group('model_weights')
        file['optimizer_weights/Adam/conv1_conv/kernel:0'] = np.zeros(6)
      for key, array in state.items():
        root[f'{key.split("/")[0]}/{key}:0'] = array
  read = weights.load_weights(str(path), NAME)
  expected = weights.from_state_dict(NAME, state)
  jax.tree.map(np.testing.assert_array_equal, read, expected)
  out = tool('weights', 'inspect', path).stdout
  assert 'note          biases' in out and f'fits          {NAME}\n' in out
  path.unlink()  # 94 MB.


_ELSEWHERE = 'is compressed or stored in another file'
_REFUSED = {'soft': 'is a link', 'link': 'is a link', 'cut off': 'truncated'}
_REFUSED['claim'] = "'a/b' claims more numbers than are stored"
_REFUSED |= dict.fromkeys(('virtual', 'external', 'gzip'), _ELSEWHERE)


@pytest.mark.parametrize(('kind', 'message'), _REFUSED.items())
def test_damage_and_links_are_refused(tool, tmp_path, kind, message):
  h5py = pytest.importorskip('h5py')
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    if kind == 'soft':
      file['a/b'] = h5py.SoftLink('/x')
    elif kind == 'link':
      file['a/b'] = h5py.ExternalLink('other.h5', '/x')
    elif kind == 'virtual':
      layout = h5py.VirtualLayout((6,), 'f4')
      layout[:] = h5py.VirtualSource('other.h5', 'x', (6,))
      file.create_virtual_dataset('a/b', layout)
    elif kind == 'claim':
      file.create_dataset('a/b', (2048, 10**9), 'f4')
    elif kind == 'external':
      file.create_dataset('a/b', data=np.ones(6), external=tmp_path / 'x')
    else:
      compression = 'gzip' if kind == 'gzip' else None
      file.create_dataset('a/b', data=np.ones(6), compression=compression)
  if kind == 'cut off':
    path.write_bytes(path.read_bytes()[:-10])
  result = tool('weights', 'inspect', path)
  assert_refused(result, f'{path} is not a file of Keras that can be', message)


def test_a_file_without_h5py_says_what_to_install(tool, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'h5py', None)
  path = tmp_path / 'a.h5'
  path.write_bytes(b'\x89HDF\r\n\x1a\n')
  result = tool('weights', 'inspect', path)
  assert_refused(result, f'{path} needs h5py: pip install h5py')


def test_v2_nets_are_refused_and_nothing_is_written():
  v2 = {'conv1_conv/kernel': (7, 7, 3, 64), 'post_bn/gamma': (2048,)}
  source = open_shapes({**v2, 'predictions/bias': (1000,)})
  assert source.metadata.model is None
  assert source.metadata.class_names[0] == 'n01440764'
  for name in (NAME, 'preact_resnet50'):
    with pytest.raises(InputError, match='the file has no tensor'):
      weights.check_stored(source, name)
  with pytest.raises(InputError, match="naming='keras' cannot be written"):
    to_stored({}, 'keras')
