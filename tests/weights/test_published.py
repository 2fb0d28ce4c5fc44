"""Published CIFAR networks give the logits that PyTorch gives for them."""

import itertools
import json

import numpy as np
import pytest

from resnet.inference.network import create_network, read_weights
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform
from tests.data.photographs import cifar10_test_images


@pytest.fixture(scope='module')
def expected(real_data):
  """What PyTorch computes, by network."""
  path = real_data / 'cifar-resnets' / 'expected.json'
  if not path.exists():
    pytest.skip(f'no published networks: there is no {path}')
  return json.loads(path.read_text())['nets']


@pytest.fixture
def predict(tool, real_data, tmp_path):
  """(network, file, (class, bytes) of images) -> classes, logits, by batch."""

  def run(name, file, images, batch_size):
    target = tmp_path / 'converted.safetensors'
    source = real_data / 'cifar-resnets' / file
    result = tool(
      *('weights', 'convert', source, target, f'--model=cifar_{name}'),
      *('--mean=0.485,0.456,0.406', '--std=0.229,0.224,0.225'),
      *('--image-size=32', '--crop-share=1', '--interpolation=bilinear'),
    )
    assert 'akamaster' in result.stdout
    assert 'without the prefix module.' in result.stdout
    network = create_network(read_weights(str(target)))
    transform = ImageTransform(preprocessing=network.preprocessing)
    predictor = Predictor(network, ['logits'], [batch_size])
    while batch := list(itertools.islice(images, batch_size)):
      names, files = zip(*batch, strict=True)
      crops = np.concatenate([transform(data) for data in files])
      yield names, predictor(crops)['logits']

  return run


@pytest.fixture(scope='module')
def first_images(real_data):
  return list(itertools.islice(cifar10_test_images(real_data), 4))


_FILES = {
  name: f'{name}.safetensors' for name in ('resnet20', 'resnet32', 'resnet56')
}
_PUBLISHED = ('resnet20', 'resnet20-12fca82f.th')


@pytest.mark.parametrize(('name', 'file'), [*_FILES.items(), _PUBLISHED])
def test_logits_are_those_of_pytorch(
  predict, expected, first_images, name, file
):
  ((_, logits),) = predict(name, file, iter(first_images), 4)
  theirs = expected[name]['logits_of_the_first_4_test_images']
  np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'file'), _FILES.items())
def test_correct_answers_are_those_of_pytorch(
  predict, expected, real_data, name, file
):
  correct, classes = 0, {}
  images = cifar10_test_images(real_data)
  for names, logits in predict(name, file, images, 500):
    # Labels number the sorted classes.
    labels = [classes.setdefault(name, len(classes)) for name in names]
    correct += np.sum(np.argmax(logits, axis=1) == labels)
  theirs = expected[name]['pytorch_correct_of_10000_jpeg_test_images']
  assert abs(correct - theirs) <= 2
