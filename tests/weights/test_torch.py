"""State dicts and files of PyTorch; `test_parity` compares the bits."""

import numpy as np
import pytest

from resnet import weights

torch = pytest.importorskip('torch')
torchvision = pytest.importorskip('torchvision')

STAGE_SIZES = (1, 2, 1, 1)


def make_state(block):
  """Returns the state dict of a short network of torchvision."""
  torch.manual_seed(0)
  library = torchvision.models.resnet
  block = getattr(library, block)
  return library.ResNet(block, STAGE_SIZES, num_classes=10).state_dict()


def test_bfloat16_becomes_float32():
  state = {
    key: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    for key, tensor in make_state('BasicBlock').items()
  }
  variables = weights.from_state_dict(
    'resnet18', state, stage_sizes=STAGE_SIZES
  )
  expected = state['conv1.weight'].float().numpy()
  kernel = variables['params']['stem_conv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), expected)


def test_files_of_torch_save_fit_the_network(tmp_path):
  path = str(tmp_path / 'weights.pth')
  state = make_state('BasicBlock')
  torch.save(state, path)
  fields = {'stage_sizes': STAGE_SIZES}
  variables = weights.load_weights(path, 'resnet18', **fields)
  again = weights.to_state_dict('resnet18', variables, **fields)
  assert again.keys() == state.keys()
  for key, tensor in state.items():
    np.testing.assert_array_equal(again[key], tensor.numpy())
