"""State dicts of torchvision and timm: there and back, bit for bit."""

import numpy as np
import pytest

from resnet.errors import InputError
from resnet.models import weights

torch = pytest.importorskip('torch')
torchvision = pytest.importorskip('torchvision')
timm = pytest.importorskip('timm')
safetensors_torch = pytest.importorskip('safetensors.torch')

TORCHVISION = ('resnet18', 'resnet50', 'resnext50_32x4d', 'wide_resnet50_2')
# Our names of timm's networks.
TIMM = {
  'resnet18d': 'resnet18d',
  'resnet50d': 'resnet50d',
  'seresnet50': 'seresnet50',
  'resnetrs50': 'resnetrs50',
  'resnet50': 'resnet50',
  'resnetv2_50': 'preact_resnet50',
}
CASES = [
  *(('torchvision', name, name) for name in TORCHVISION),
  *(('timm', theirs, ours) for theirs, ours in TIMM.items()),
]


def make(library, name, **fields):
  torch.manual_seed(0)
  if library == 'timm':
    return timm.create_model(name, **fields)
  return getattr(torchvision.models, name)(**fields)


def trained(library, name):
  """A network whose statistics and counters are not those of a new one."""
  model = make(library, name, num_classes=10).train()
  with torch.no_grad():
    for _ in range(2):
      model(torch.randn(2, 3, 64, 64))
  return model


def assert_same_bits(actual, expected):
  assert set(actual) == set(expected)
  for key, tensor in expected.items():
    theirs = tensor.numpy()
    ours = (
      actual[key]
      if isinstance(actual[key], np.ndarray)
      else actual[key].numpy()
    )
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), key
    assert ours.tobytes() == theirs.tobytes(), key


@pytest.mark.parametrize(('library', 'theirs', 'ours'), CASES)
def test_there_and_back_is_bit_equal(library, theirs, ours):
  state = trained(library, theirs).state_dict()
  variables = weights.from_state_dict(ours, state)
  assert_same_bits(
    weights.to_state_dict(ours, variables, naming=library), state
  )


@pytest.mark.parametrize(('library', 'theirs', 'ours'), CASES)
def test_a_file_of_ours_is_loaded_by_them(library, theirs, ours, tmp_path):
  state = trained(library, theirs).state_dict()
  path = str(tmp_path / 'weights.safetensors')
  variables = weights.from_state_dict(ours, state)
  weights.save_weights(variables, path, naming=library)
  other = make(library, theirs, num_classes=10)
  other.load_state_dict(safetensors_torch.load_file(path), strict=True)
  assert_same_bits(other.state_dict(), state)


def test_a_file_of_theirs_is_loaded_by_us(tmp_path):
  state = trained('torchvision', 'resnet18').state_dict()
  path = str(tmp_path / 'weights.safetensors')
  safetensors_torch.save_file(state, path)
  variables = weights.load_weights(path, 'resnet18')
  assert_same_bits(weights.to_state_dict('resnet18', variables), state)


def test_bfloat16_becomes_float32():
  state = make('torchvision', 'resnet18', num_classes=10).state_dict()
  half = {
    key: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    for key, tensor in state.items()
  }
  variables = weights.from_state_dict('resnet18', half)
  expected = half['conv1.weight'].float().numpy()
  kernel = variables['params']['stem_conv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)


def test_a_state_dict_of_another_network_is_refused():
  state = make('torchvision', 'resnet50').state_dict()
  with pytest.raises(InputError, match=r"'fc.weight' .* shape"):
    weights.from_state_dict('resnet34', state)
  basic = make('timm', 'resnetv2_18').state_dict()
  with pytest.raises(InputError, match='basic blocks'):
    weights.from_state_dict('preact_resnet18', basic)


def test_a_pickle_of_torch_is_not_opened(tmp_path):
  path = str(tmp_path / 'weights.pth')
  torch.save(make('torchvision', 'resnet18').state_dict(), path)
  with pytest.raises(InputError, match='is a pickle') as error:
    weights.load_weights(path, 'resnet18')
  # The two lines that it shows do what they say.
  lines = str(error.value).partition('with PyTorch: ')[2]
  target = str(tmp_path / 'weights.safetensors')
  lines = lines.replace('weights.safetensors', target)
  exec(lines, {'torch': torch, 'safetensors': __import__('safetensors.torch')})
  state = torch.load(path, weights_only=True)
  variables = weights.load_weights(target, 'resnet18')
  assert_same_bits(weights.to_state_dict('resnet18', variables), state)
