"""The network that comes with the package, which needs no weights."""

import json
import pathlib

import jax
import numpy as np
import pytest

from resnet import pretrained
from resnet.errors import InputError
from resnet.inference.network import create_network, read_weights
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform
from resnet.weights.sources import PACKAGED
from tests.data.in_memory import encode, smooth_image
from tests.data.photographs import cifar10_test_images

# CIFAR-10's, in the order of its labels.
CLASSES = (
  *('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse'),
  *('ship', 'truck'),
)


@pytest.fixture(scope='module')
def photographs(real_data):
  """Four test images of each class of CIFAR-10, by class."""
  images = {name: [] for name in CLASSES}
  for name, data in cifar10_test_images(real_data):
    if len(images[name]) < 4:
      images[name].append(data)
    if len(images[CLASSES[-1]]) == 4:
      break
  return images


def test_it_is_small_and_knows_the_classes_of_cifar_10():
  weights = read_weights()
  assert weights.name == PACKAGED
  assert weights.model_name == 'cifar_resnet20'
  assert weights.class_names == CLASSES
  assert weights.preprocessing.image_shape == (32, 32, 3)
  assert pathlib.Path(PACKAGED).stat().st_size < 1.2e6
  card = pathlib.Path(PACKAGED).with_name('README.md').read_text()
  assert pathlib.Path(PACKAGED).name in card


def test_it_knows_real_images(photographs):
  network = create_network(read_weights())
  transform = ImageTransform(preprocessing=network.preprocessing)
  predictor = Predictor(network, ['probabilities'], [4])
  right = 0
  for name, files in photographs.items():
    images = [transform(data)[0] for data in files]
    for row in predictor(np.stack(images))['probabilities']:
      right += network.top_classes(row, 1)[0]['name'] == name
  assert right >= 28, f'{right} of 40'


def test_it_predicts_in_python(tmp_path):
  path = tmp_path / 'cat.jpg'
  path.write_bytes(encode(smooth_image(50, 60), 'JPEG'))
  net = pretrained.load()
  answers = net.predict([str(path)] * 3, top=2)
  assert [len(classes) for classes in answers] == [2, 2, 2]
  images = net.preprocess([str(path)])
  logits = net.model.apply(net.variables, images, train=False)[0]
  best = answers[0][0]
  assert best['name'] == CLASSES[int(np.argmax(logits))]
  expected = float(jax.nn.softmax(logits).max())
  assert best['probability'] == pytest.approx(expected, abs=1e-5)
  with pytest.raises(InputError, match=r'nothing\.png cannot be read'):
    net.predict(['nothing.png'])


def test_tools_use_it_without_weights_and_say_so(tool, tmp_path):
  path = tmp_path / 'cat.jpg'
  path.write_bytes(encode(smooth_image(50, 60), 'JPEG'))
  result = tool('predict', path, '--json')
  assert result.returncode == 0
  assert 'No --weights: using the network for' in result.stderr
  classes = json.loads(result.stdout)['classes']
  assert {x['name'] for x in classes} < set(CLASSES)
  out = tmp_path / 'exported'
  result = tool('export', '--format=stablehlo', f'--out={out}')
  assert result.returncode == 0
  assert 'No --weights' in result.stderr
  exported = tool('predict', f'--weights={out}', path, '--json')
  assert 'No --weights' not in exported.stderr
  same = json.loads(exported.stdout)['classes']
  assert [x['name'] for x in same] == [x['name'] for x in classes]
