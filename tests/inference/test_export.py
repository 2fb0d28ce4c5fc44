"""Exports compute what the network computes, or are not kept."""

import dataclasses
import importlib.util
import json
import os

from flax import linen as nn
import jax
from jax import monitoring
import numpy as np
import pytest

from resnet.errors import InputError, RunError
from resnet.inference import export as export_lib
from resnet.inference import onnx
from resnet.inference.export import export
from resnet.inference.exported import is_exported, open_exported
from resnet.inference.network import Weights, create_network
from resnet.inference.predictor import Predictor
from resnet.models.weights import Preprocessing
from tests.networks import make_variables

needs_onnx = pytest.mark.skipif(
  not importlib.util.find_spec('jax2onnx'), reason='an optional extra'
)
KINDS = [
  'cifar_resnet8',
  'resnet18',
  'resnet18d',
  'preact_resnet18',
  'seresnet50',
]


def make_weights(name, size=32, num_classes=5, **overrides):
  """Random weights, with all that is recorded of them."""
  model, variables = make_variables(
    name, size=size, num_classes=num_classes, **overrides
  )
  return Weights(
    name='random',
    model_name=name,
    model=model,
    variables=variables,
    preprocessing=Preprocessing(
      # Of uniform pixels: what random weights are made for (below).
      mean=(0.5,) * 3,
      std=(12**-0.5,) * 3,
      image_size=size,
      crop_share=0.875,
      interpolation='bilinear',
    ),
    class_names=tuple(f'class {i}' for i in range(num_classes)),
  )


def make_small(name):
  """The same with one block a stage."""
  if name.startswith('cifar'):
    return make_weights(name)
  return make_weights(name, stage_sizes=(1, 1, 1, 1), num_filters=16)


def write(weights, folder, format_='stablehlo', inside=False, platforms=None):
  return export(
    weights,
    str(folder),
    format_=format_,
    platforms=platforms or ['cpu'],
    with_preprocessing=inside,
  )


@pytest.fixture(scope='module')
def small():
  return make_weights('cifar_resnet8', size=16)


@pytest.fixture(scope='module', params=KINDS)
def kind(request):
  return make_small(request.param)


@pytest.mark.parametrize('inside', [False, True])
def test_stablehlo_has_the_bits_of_the_network(kind, inside, tmp_path):
  manifest = write(kind, tmp_path / 'out', inside=inside)
  assert manifest['largest_relative_difference'] == {'1': 0.0, '7': 0.0}


@needs_onnx
@pytest.mark.filterwarnings('ignore')  # Of jax2onnx, about itself.
@pytest.mark.parametrize('inside', [False, True])
def test_onnx_is_the_network_within_1e_5(kind, inside, tmp_path):
  manifest = write(kind, tmp_path / 'out', 'onnx', inside)
  differences = manifest['largest_relative_difference']
  assert differences.keys() == {'1', '7'}
  assert 0 <= max(differences.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
  'format_', ['stablehlo', pytest.param('onnx', marks=needs_onnx)]
)
@pytest.mark.filterwarnings('ignore')
def test_resnet50_as_it_is(format_, tmp_path):
  weights = make_weights('resnet50', size=224, num_classes=1000)
  # Of uniform pixels: where activations are larger than those that the
  # statistics are of, random weights amplify rounding.
  preprocessing = dataclasses.replace(
    weights.preprocessing, mean=(0.5,) * 3, std=(12**-0.5,) * 3
  )
  weights = dataclasses.replace(weights, preprocessing=preprocessing)
  manifest = write(weights, tmp_path / 'out', format_, inside=True)
  differences = manifest['largest_relative_difference']
  limit = 0.0 if format_ == 'stablehlo' else 1e-5
  assert differences.keys() == {'1', '7'}
  assert max(differences.values()) <= limit


@needs_onnx
@pytest.mark.filterwarnings('ignore')
def test_a_max_pool_without_its_padding_is_found(tmp_path, monkeypatch):
  """As jax2onnx 0.17.1 would drop it."""
  weights = make_small('resnet18')
  write(weights, tmp_path / 'whole', 'onnx')
  monkeypatch.setattr(
    onnx,
    'pad_and_max_pool',
    lambda x: nn.max_pool(
      x, window_shape=(3, 3), strides=(2, 2), padding='VALID'
    ),
  )
  with pytest.raises(RunError, match='not those of the network'):
    write(weights, tmp_path / 'out', 'onnx')
  assert os.listdir(tmp_path) == ['whole']


def test_the_pooling_in_two_steps_is_that_of_the_stem():
  from resnet.models import layers

  x = -jax.random.uniform(jax.random.key(0), (2, 9, 12, 3))
  np.testing.assert_array_equal(
    onnx.pad_and_max_pool(x), layers.stem_max_pool(x)
  )


def test_a_program_of_other_weights_is_found(small, tmp_path, monkeypatch):
  """The last bit of one kernel is enough."""
  real = export_lib._to_stablehlo

  def with_another_kernel(weights, *args):
    variables = jax.tree.map(np.copy, weights.variables)
    kernel = variables['params']['head']['kernel']
    kernel[...] = np.nextafter(kernel, np.float32(9))
    return real(dataclasses.replace(weights, variables=variables), *args)

  monkeypatch.setattr(export_lib, '_to_stablehlo', with_another_kernel)
  with pytest.raises(RunError, match='It is not kept'):
    write(small, tmp_path / 'out')
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'format_', ['stablehlo', pytest.param('onnx', marks=needs_onnx)]
)
@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.filterwarnings('ignore')
def test_an_exported_folder_predicts_as_the_network(
  small, tmp_path, format_, inside
):
  folder = str(tmp_path / 'out')
  write(small, folder, format_, inside)
  assert is_exported(folder)
  images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
  results = [
    Predictor(network, ['probabilities'], [8])(images)['probabilities']
    for network in (create_network(small), open_exported(folder))
  ]
  np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)
  assert np.ptp(results[0]) > 1e-3
  assert open_exported(folder).class_names == small.class_names
  with pytest.raises(InputError, match="no 'cam'"):
    Predictor(open_exported(folder), ['cam'], [8])


@pytest.mark.parametrize('is_export', [False, True])
def test_nothing_is_compiled_after_compile(small, tmp_path, is_export):
  """So a server compiles nothing while it serves."""
  network = create_network(small)
  if is_export:
    write(small, tmp_path / 'out')
    network = open_exported(str(tmp_path / 'out'))
  outputs = ['probabilities'] + ([] if is_export else ['cam'])
  predictor = Predictor(network, outputs, [1, 2, 4])
  events = []

  def listen(event, *args, **kwargs):
    del args, kwargs
    events.append(event)

  monitoring.register_event_duration_secs_listener(listen)
  try:
    predictor.compile()
    assert any('compile' in event for event in events)
    events.clear()
    for size in (1, 2, 3, 4):
      assert len(predictor(np.zeros((size, 16, 16, 3), np.uint8))) > 0
    assert not [event for event in events if 'compile' in event]
  finally:
    monitoring.unregister_event_duration_listener(listen)


def test_several_platforms(small, tmp_path):
  folder = tmp_path / 'out'
  write(small, folder, platforms=['cpu', 'cuda', 'tpu'])
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  assert manifest['model'] == 'cifar_resnet8'
  assert manifest['input']['shape'] == ['batch', 16, 16, 3]
  assert manifest['versions']['jax'] == jax.__version__
  assert open_exported(str(folder)).image_shape == (16, 16, 3)


def test_bad_input_is_refused(small, tmp_path):
  for platforms, message in (
    (['cpu', 'vax'], "'vax', none of cpu"),
    (['tpu'], "needs 'cpu' too"),
  ):
    with pytest.raises(InputError, match=message):
      write(small, tmp_path / 'out', platforms=platforms)
  with pytest.raises(InputError, match='there already'):
    write(small, tmp_path)
  with pytest.raises(InputError, match='cannot be made'):
    write(small, tmp_path / 'no' / 'where')
  assert os.listdir(tmp_path) == []


def test_a_damaged_folder_is_refused(small, tmp_path):
  folder = tmp_path / 'out'
  write(small, folder)
  path = folder / 'model.stablehlo'
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(InputError, match=r'model\.stablehlo has not the SHA-256'):
    open_exported(str(folder))
  manifest = folder / 'manifest.json'
  text = manifest.read_text()
  manifest.write_text(text.replace('"cpu"', '"tpu"'))
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(InputError, match='is for tpu; this is cpu'):
    open_exported(str(folder))
  for damaged in ('', '[]', '{"preprocessing": 3}'):
    manifest.write_text(damaged)
    with pytest.raises(InputError, match='is damaged'):
      open_exported(str(folder))
