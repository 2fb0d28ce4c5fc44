"""Exports compute the logits of the network, or are deleted."""

import dataclasses
import functools
import importlib.util
import os
import shutil

import jax
from jax import monitoring
import numpy as np
import pytest
import safetensors.numpy

from resnet.errors import InputError, RunError
from resnet.export.export import export
from resnet.export.exported import open_exported, open_network
from resnet.export.formats import onnx, stablehlo
from resnet.inference.network import Weights, create_network
from resnet.inference.predictor import Predictor
from resnet.models import pooling
from tests.networks import make_variables, with_metadata


def optional(format_, package):
  """Returns a format whose package is an optional extra."""
  reason = f'{package}, an optional extra, is not installed'
  is_missing = not importlib.util.find_spec(package)
  # jax2onnx warns about itself.
  marks = [pytest.mark.filterwarnings('ignore')]
  return pytest.param(
    format_, marks=[*marks, pytest.mark.skipif(is_missing, reason=reason)]
  )


FORMATS = [
  'stablehlo',
  optional('onnx', 'jax2onnx'),
  optional('openvino', 'openvino'),
]
PLATFORMS = ['cpu', 'cuda', 'tpu']


def make_weights(name, size=16, **overrides):
  """Random weights, with all that is recorded of them."""
  made = make_variables(name, size=size, num_classes=5, **overrides)
  return with_metadata(name, *made, size=size)


def make_small(name):
  return make_weights(name, 32, stage_sizes=(1, 1), num_filters=8)


def write(weights, folder, format_='stablehlo', inside=False, platforms=None):
  return export(
    weights,
    str(folder),
    format_=format_,
    platforms=platforms or ['cpu'],
    with_preprocessing=inside,
  )


def assert_equal_logits(manifest):
  differences = manifest['largest_relative_difference']
  assert differences.keys() == {'1', '7'}
  # Folding batch norms rounds differently.
  assert 0 < max(differences.values()) <= 1e-5


@pytest.fixture(scope='module')
def small():
  return make_weights('cifar_resnet8')


@pytest.fixture(scope='module')
def exported(small, tmp_path_factory):
  """A StableHLO export for several platforms; not to be changed."""
  folder = tmp_path_factory.mktemp('exports') / 'out'
  write(small, folder, platforms=PLATFORMS)
  return folder


@pytest.mark.parametrize('format_', FORMATS)
@pytest.mark.parametrize(
  'name',
  [
    'resnet18d',
    'preact_resnet18',
    pytest.param('resnetblur18', marks=pytest.mark.slow),
    pytest.param('seresnet50', marks=pytest.mark.slow),
  ],
)
def test_each_format_computes_the_logits_of_the_network(
  name, format_, tmp_path
):
  manifest = write(make_small(name), tmp_path / 'out', format_)
  assert_equal_logits(manifest)


@pytest.mark.parametrize('format_', FORMATS)
@pytest.mark.parametrize('inside', [False, True])
def test_an_exported_folder_predicts_as_the_network(
  small, tmp_path, format_, inside
):
  folder = str(tmp_path / 'out')
  assert_equal_logits(write(small, folder, format_, inside))
  images = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), np.uint8)
  network = open_network(folder)
  results = [
    Predictor(network, ['probabilities'], [8])(images)['probabilities']
    for network in (create_network(small), network)
  ]
  np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-6)
  assert np.ptp(results[0]) > 1e-3
  assert network.class_names == small.class_names
  row = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32)
  assert network.top_classes(row, 2) == [
    {'index': 0, 'name': 'tench', 'id': 'n01440764', 'probability': 0.5},
    {'index': 1, 'name': 'class 1', 'probability': 0.25},
  ]
  with pytest.raises(InputError, match="no output 'cam'"):
    Predictor(network, ['cam'], [8])


def test_an_export_equals_the_folded_network_bit_for_bit(small, exported):
  tensors = safetensors.numpy.load_file(exported / 'weights.safetensors')
  leaves = {name.rpartition('/')[2] for name in tensors}
  assert leaves == {'kernel', 'offset', 'bias'}
  images = np.random.default_rng(1).standard_normal((3, 16, 16, 3), np.float32)
  model = small.model.clone(conv_backend='xla')  # For several platforms.
  apply = jax.jit(functools.partial(model.apply, train=False))
  np.testing.assert_array_equal(
    stablehlo.load(str(exported))(images),
    apply(small.folded().variables, images),
  )


def test_an_export_that_differs_from_the_unfolded_network_is_not_kept(
  small, tmp_path, monkeypatch
):
  variables = jax.tree.map(np.copy, small.folded().variables)
  variables['params']['stem_bn']['offset'] += 1e-3
  wrong = dataclasses.replace(small, variables=variables)
  monkeypatch.setattr(Weights, 'folded', lambda _: wrong)
  with pytest.raises(RunError, match='was deleted'):
    write(small, tmp_path / 'out')
  assert os.listdir(tmp_path) == []


def test_pooling_in_two_steps_equals_the_stem():
  x = -jax.random.uniform(jax.random.key(0), (2, 9, 12, 3))
  np.testing.assert_array_equal(
    onnx.pad_and_max_pool(x), pooling.stem_max_pool(x)
  )


def test_a_program_that_differs_in_the_last_bit_is_not_kept(
  small, exported, tmp_path, monkeypatch
):
  variables = jax.tree.map(np.copy, small.variables)
  kernel = variables['params']['head']['kernel']
  kernel[...] = np.nextafter(kernel, np.float32(9))
  program = stablehlo.load(str(exported))
  monkeypatch.setattr(stablehlo, 'load', lambda _: program)
  with pytest.raises(RunError, match='was deleted'):
    write(dataclasses.replace(small, variables=variables), tmp_path / 'out')
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('is_export', [False, True])
def test_nothing_is_compiled_after_compile(small, exported, is_export):
  """So a server compiles nothing while it serves."""
  network, outputs = create_network(small), ['probabilities', 'cam']
  if is_export:
    network, outputs = open_exported(str(exported)), ['probabilities']
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


def test_bad_input_is_refused(small, tmp_path):
  with pytest.raises(InputError, match="'vax', not one of cpu"):
    write(small, tmp_path / 'out', platforms=['cpu', 'vax'])
  with pytest.raises(InputError, match='exists: choose'):
    write(small, tmp_path)
  with pytest.raises(InputError, match='cannot be written'):
    write(small, tmp_path / 'no' / 'where')
  assert os.listdir(tmp_path) == []


def test_a_damaged_folder_is_refused(exported, tmp_path):
  folder = tmp_path / 'out'
  shutil.copytree(exported, folder)
  path = folder / 'model.stablehlo'
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  with pytest.raises(InputError, match=r'SHA-256 of model\.stablehlo is not'):
    open_exported(str(folder))
  shutil.copy(exported / path.name, path)
  manifest = folder / 'manifest.json'
  text = manifest.read_text()
  manifest.write_text(text.replace('"cpu"', '"rocm"'))
  with pytest.raises(InputError, match='is for rocm, cuda, tpu; this is cpu'):
    open_exported(str(folder))
  manifest.write_text('[]')
  with pytest.raises(InputError, match='is damaged'):
    open_exported(str(folder))
