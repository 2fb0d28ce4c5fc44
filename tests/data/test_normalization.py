"""Channel statistics: measured and published."""

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from resnet.data.host.decode import decode_record
from resnet.data.normalization import channel_statistics
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from tests.data.in_memory import make_source


def assert_statistics(source, size, images):
  """Compares with NumPy's statistics of [N, H, W, C]."""
  mean, std = channel_statistics(source, size)
  np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-12)


def test_digits_have_the_statistics_of_the_same_images_in_sklearn(data_dir):
  digits = sklearn_datasets.load_digits()
  originals = np.round(digits.images * 255 / 16)[..., None]
  # All of a small split, which is every fifth image.
  test = originals[np.argsort(digits.target, kind='stable')[::5]]
  assert_statistics(open_source('digits', 'test', data_dir=data_dir), 8, test)
  # 1,024 of a larger one, evenly spaced in the order of the files.
  train = open_source('digits', 'train', data_dir=data_dir)
  indices = [round(n * 1436 / 1023) for n in range(1024)]
  records = train.read(indices)
  chosen = [
    decode_record(train, *pair) for pair in zip(indices, records, strict=True)
  ]
  assert_statistics(train, 8, np.stack(list(chosen)))


def test_each_channel_is_measured_separately():
  rng = np.random.default_rng(0)
  images = rng.integers(0, [100, 200, 256], (5, 6, 6, 3)).astype(np.uint8)
  records = [{'image': image} for image in images]
  assert_statistics(make_source(records, channels=3), 6, images)


# ImageNet: torchvision's times 255. CIFAR: 125.3, 123.0, 113.9 and 63.0, 62.1,
# 66.7, as they are often rounded.
@pytest.mark.parametrize(
  ('name', 'mean', 'std'),
  [
    ('imagenet2012:9.9.9', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ('cifar10', (125.307, 122.961, 113.8575), (62.985, 62.0925, 66.708)),
  ],
)
def test_published_values_are_used_and_nothing_is_read(name, mean, std):
  source = make_source([{}], name=name, channels=3)
  statistics = channel_statistics(source, 32)
  np.testing.assert_allclose(statistics, (mean, std), rtol=1e-12)


def test_constant_channel_is_refused():
  image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  image[..., 1] = 9
  source = make_source([{'image': image}] * 3, channels=3)
  with pytest.raises(InputError, match=r'made/train.*data\.mean.*data\.std'):
    channel_statistics(source, 4)
