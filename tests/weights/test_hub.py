"""Repositories of the Hugging Face hub: download, cache, configs."""

import dataclasses
import functools
import http.server
import json
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from resnet import weights
from resnet.data.sources import imagenet_names
from resnet.errors import InputError
from resnet.export.repository import save_repository
from resnet.weights import Metadata
from tests.networks import draw_variables, make_preprocessing

constants = pytest.importorskip('huggingface_hub.constants')

_PREPROCESSING = make_preprocessing(
  160, crop_share=0.95, interpolation='bicubic'
)


@functools.cache
def _variables(name='cifar_resnet8'):
  _, variables = draw_variables(name, size=16, num_classes=3)
  return variables


def _assert_read(source, name):
  read = weights.load_weights(str(source), name)['params']
  expected = _variables(name)['params']
  np.testing.assert_array_equal(read['head']['bias'], expected['head']['bias'])


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers /OWNER/NAME/resolve/REVISION/FILE as the hub does."""

  def do_HEAD(self):
    self._answer()

  def do_GET(self):
    self.wfile.write(self._answer())

  def _answer(self):
    owner, name, _, revision, file = self.path.strip('/').split('/')
    self.server.asked.append((self.command, f'{owner}/{name}', revision, file))
    path = self.server.folder / file
    data = path.read_bytes() if path.exists() else b''
    self.send_response(200 if data else 404)
    self.send_header('X-Repo-Commit', 'c' * 40)
    if not data:
      error = 'EntryNotFound' if owner == 'timm' else 'RepoNotFound'
      self.send_header('X-Error-Code', error)
    self.send_header('ETag', f'"{file}-{len(data)}"')
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    return data

  def log_message(self, *_):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A hub of one repository: its `folder`, and the requests, `asked`."""
  result = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  result.asked, result.folder = [], tmp_path / 'served'
  result.folder.mkdir()
  url = f'http://127.0.0.1:{result.server_port}'
  template = url + '/{repo_id}/resolve/{revision}/{filename}'
  for name, value in (
    ('HUGGINGFACE_CO_URL_TEMPLATE', template),
    ('HF_HUB_CACHE', str(tmp_path / 'cache')),
    ('HF_HUB_OFFLINE', False),
  ):
    monkeypatch.setattr(constants, name, value)
  thread = threading.Thread(target=result.serve_forever)
  thread.start()
  yield result
  result.shutdown()
  thread.join()
  result.server_close()


def _timm_config(**fields):
  return json.dumps(
    {
      'label_names': ['a', 'b', 'c'],
      'pretrained_cfg': {
        'mean': [0.5, 0.5, 0.5],
        'std': [0.25, 0.25, 0.25],
        'input_size': [3, 160, 160],
        'crop_pct': 0.95,
        'interpolation': 'bicubic',
      },
      **fields,
    }
  )


def test_weights_are_downloaded_once_and_read_offline(
  server, monkeypatch, capsys
):
  weights.save_weights(_variables(), str(server.folder / 'model.safetensors'))
  (server.folder / 'config.json').write_text(_timm_config())
  source = 'hf-hub:timm/net@abc'
  assert weights.open_stored(source).metadata == Metadata(
    preprocessing=_PREPROCESSING, class_names=('a', 'b', 'c')
  )
  assert [x for x in server.asked if x[0] == 'GET'] == [
    ('GET', 'timm/net', 'abc', 'model.safetensors'),
    ('GET', 'timm/net', 'abc', 'config.json'),
  ]
  assert f'Downloading config.json of {source}\n' in capsys.readouterr().err
  server.asked.clear()
  _assert_read(source, 'cifar_resnet8')
  assert {command for command, *_ in server.asked} == {'HEAD'}
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  server.asked.clear()
  _assert_read(source, 'cifar_resnet8')
  assert not server.asked
  # A repository with PyTorch's file alone.
  (server.folder / 'pytorch_model.bin').write_bytes(b'PK damaged')
  (server.folder / 'model.safetensors').unlink()
  for offline in (False, True):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    with pytest.raises(InputError, match=r'pytorch_model.bin is not a file of'):
      weights.open_stored('hf-hub:timm/old')
  capsys.readouterr()
  message = 'other: model.safetensors is not in the cache, and HF_HUB_OFFLINE'
  with pytest.raises(InputError, match=message):
    weights.open_stored('hf-hub:timm/other')
  assert not capsys.readouterr().err


def test_errors_of_the_hub_are_reported(server, monkeypatch):
  with pytest.raises(InputError, match='timm/net has none of model'):
    weights.open_stored('hf-hub:timm/net')
  with pytest.raises(InputError, match=r'be downloaded: .*Repository Not'):
    weights.open_stored('hf-hub:nobody/net')
  for name in ('', 'a/b/c', 'a b/c'):
    with pytest.raises(InputError, match='cannot be downloaded: Repo id must'):
      weights.open_stored(f'hf-hub:{name}')
  weights.save_weights(_variables(), str(server.folder / 'model.safetensors'))
  for config in ('{"pretrained_cfg": 3}', '{"a": [' + '0, ' * 10**6 + '0]}'):
    (server.folder / 'config.json').write_text(config)
    with pytest.raises(InputError, match=r'config.json is damaged'):
      weights.open_stored(f'hf-hub:timm/net@{len(config)}')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(InputError, match='pip install huggingface_hub'):
    weights.open_stored('hf-hub:timm/net')


def test_weights_of_timm_name_their_network_and_the_classes_of_imagenet(
  tmp_path,
):
  weights.save_weights(_variables(), str(tmp_path / 'model.safetensors'))
  config = tmp_path / 'config.json'
  for name, model in (('resnet18d', 'resnet18d'), ('vit_tiny', None)):
    fields = {'architecture': name, 'pretrained_cfg': {'tag': 'ra2_in1k'}}
    config.write_text(json.dumps(fields))
    metadata = weights.open_stored(str(tmp_path)).metadata
    assert metadata.model == model
    assert metadata.class_names == imagenet_names.class_ids()
  # Another activation, and another crop.
  fields = {'architecture': 'resnet18', 'model_args': {'act_layer': 'gelu'}}
  config.write_text(_timm_config(**fields))
  metadata = weights.open_stored(str(tmp_path)).metadata
  assert metadata.model is None and metadata.preprocessing == _PREPROCESSING
  config.write_text(
    config.read_text().replace('"mean"', '"crop_mode": 1, "mean"')
  )
  assert weights.open_stored(str(tmp_path)).metadata.preprocessing is None
  config.unlink()
  assert weights.open_stored(str(tmp_path)).metadata == Metadata()


def test_other_steps_of_preprocessing_are_not_taken_for_ours(tmp_path):
  folder, path = tmp_path / 'net', tmp_path / 'net' / 'preprocessor_config.json'
  save_repository(
    _variables('resnet18'), str(folder), _metadata('resnet18'), 'transformers'
  )
  _drop_header(folder)
  fields = json.loads(path.read_text())
  for change in (
    {'size': {'height': 224, 'width': 224}},
    {'resample': 1},
    {'do_normalize': False},
    {'size': 384},
  ):
    path.write_text(json.dumps({**fields, **change}))
    metadata = weights.open_stored(str(folder)).metadata
    assert metadata.model == 'resnet18' and metadata.preprocessing is None


def _drop_header(folder):
  path = folder / 'model.safetensors'
  safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)


def _metadata(name, first='n01440764'):
  return Metadata(
    model=name, preprocessing=_PREPROCESSING, class_names=(first, 'b', 'c')
  )


def _logits(name, images):
  model, variables = draw_variables(name, size=16, num_classes=3)
  return np.asarray(model.apply(variables, images, train=False))


@pytest.mark.parametrize('name', ['resnet18', 'preact_resnet50'])
def test_timm_loads_a_written_folder(tmp_path, name):
  torch, timm = map(pytest.importorskip, ('torch', 'timm'))
  folder = tmp_path / 'net'
  save_repository(_variables(name), str(folder), _metadata(name))
  net = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
  images = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
  with torch.no_grad():
    theirs = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  np.testing.assert_allclose(
    theirs, _logits(name, images), rtol=1e-4, atol=1e-4
  )
  data = timm.data.resolve_data_config({}, model=net)
  assert data['input_size'] == (3, 160, 160)
  assert (data['crop_pct'], data['interpolation']) == (0.95, 'bicubic')
  assert net.pretrained_cfg['label_names'][0] == 'n01440764'
  # Our header can be lost on the way; the config says the same.
  _assert_read_by_config(folder, name)


@pytest.mark.parametrize('name', ['resnet34', 'resnet50', 'resnet50_v1'])
def test_transformers_loads_a_written_folder(tmp_path, name):
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  folder = tmp_path / 'net'
  save_repository(
    _variables(name), str(folder), _metadata(name), 'transformers'
  )
  net = transformers.AutoModelForImageClassification.from_pretrained(folder)
  processor = transformers.AutoImageProcessor.from_pretrained(folder)
  images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), np.uint8)
  inputs = processor(images=list(images), return_tensors='pt')
  inputs = inputs['pixel_values']
  with torch.no_grad():
    theirs = net.eval()(inputs).logits.numpy()
  assert inputs.shape == (2, 3, 160, 160)
  ours = _logits(name, inputs.numpy().transpose(0, 2, 3, 1))
  np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4)
  assert net.config.id2label[0] == 'tench'
  _assert_read_by_config(folder, name, first='tench')


def _assert_read_by_config(folder, name, first='n01440764'):
  """Without the header of model.safetensors, config.json gives the metadata."""
  state = weights.open_stored(str(folder))
  assert state.metadata == _metadata(name)
  _drop_header(folder)
  metadata = weights.open_stored(str(folder)).metadata
  assert metadata == _metadata(name, first)
  _assert_read(folder, name)


def test_folders_for_the_hub_have_a_card_and_are_complete_or_refused(tmp_path):
  folder, variables = tmp_path / 'net', _variables('resnet18')
  save_repository(variables, str(folder), _metadata('resnet18'))
  card = (folder / 'README.md').read_text()
  assert 'library_name: timm' in card
  assert 'Classes: tench, b, c.' in card
  assert 'shorter side to 168 pixels' in card

  def refuse(message, metadata, naming='timm', name='new'):
    with pytest.raises(InputError, match=message):
      save_repository(variables, str(tmp_path / name), metadata, naming)
    assert sorted(tmp_path.iterdir()) == [folder]

  known = _metadata('resnet18')
  refuse('net exists', known, name='net')
  refuse('must be known', Metadata(model='resnet18'))
  refuse('must be known', Metadata(preprocessing=_PREPROCESSING))
  other = dataclasses.replace(known, shortcut='A')
  refuse("timm has no resnet18 with shortcut 'A'", other)
  refuse('timm has no resnet50_v1', _metadata('resnet50_v1'))
  refuse(
    'transformers has no resnet18d', _metadata('resnet18d'), 'transformers'
  )
  refuse("naming='akamaster' is not one of timm", known, 'akamaster')
