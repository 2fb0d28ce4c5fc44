"""Random erasing: what Zhong et al. 2020 and torchvision say it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from resnet.data import augment
from resnet.data.erasing import RandomErasing, erase_boxes
from resnet.errors import InputError

AREA, ASPECT = (0.02, 1 / 3), (0.3, 10 / 3)


def keys_of(count):
  return augment.example_keys(0, jnp.int32(0), count)


def make(**fields):
  defaults = {
    'probability': 1.0,
    'area': AREA,
    'aspect': ASPECT,
    'fill': 'noise',
  }
  return RandomErasing(**{**defaults, **fields})


def boxes_of(shape, count=4000, **fields):
  defaults = {'probability': 1.0, 'area': AREA, 'aspect': ASPECT}
  draw = jax.jit(lambda k: erase_boxes(k, *shape, **{**defaults, **fields}))
  return np.array(draw(keys_of(count)))


@pytest.mark.parametrize('shape', [(64, 64), (40, 90)])
def test_boxes_have_the_distribution_of_torchvision(shape):
  torch = pytest.importorskip('torch')
  transforms = pytest.importorskip('torchvision.transforms.v2')
  erase = transforms.RandomErasing(p=1.0, scale=AREA, ratio=ASPECT)
  image = torch.zeros(3, *shape)
  torch.manual_seed(0)
  theirs = np.array(
    [
      [params[name] for name in 'ijhw']
      for params in (erase.make_params([image]) for _ in range(4000))
    ]
  )
  ours = boxes_of(shape)
  for pair in zip(ours.T, theirs.T, strict=True):
    assert stats.ks_2samp(*pair).pvalue > 0.001
  areas = [np.prod(boxes[:, 2:], axis=1) for boxes in (ours, theirs)]
  assert stats.ks_2samp(*areas).pvalue > 0.001


def test_the_area_is_uniform_in_its_range_and_the_aspect_too():
  top, left, h, w = boxes_of((256, 256), area=(0.05, 0.2)).T
  share = h * w / 256**2
  assert share.min() > 0.048 and share.max() < 0.204
  uniform = stats.uniform(0.05, 0.15)
  assert stats.kstest(share, uniform.cdf).pvalue > 0.001
  low, high = np.log(ASPECT)
  aspect = stats.uniform(low, high - low)
  assert stats.kstest(np.log(h / w), aspect.cdf).pvalue > 0.001
  # The place is uniform among those where the box is inside.
  for start, length in ((top, h), (left, w)):
    assert start.min() == 0 and (start + length).max() == 256
    share = (start + 0.5) / (256 - length + 1)
    assert stats.kstest(share, stats.uniform().cdf).pvalue > 0.001


def test_so_many_images_are_erased_as_the_probability_says():
  erased = boxes_of((32, 32), probability=0.25)[:, 2] > 0
  assert stats.binomtest(int(erased.sum()), 4000, 0.25).pvalue > 0.001


def test_what_does_not_fit_is_not_erased():
  assert not boxes_of((6, 240), area=(0.9, 1.0), aspect=(1.0, 1.0)).any()


@pytest.mark.parametrize('fill', ['noise', 'mean'])
@pytest.mark.parametrize('is_normalized', [False, True])
def test_the_box_is_filled_and_the_rest_is_as_it_was(fill, is_normalized):
  images = np.full((400, 24, 20, 3), 200, np.uint8)
  mean, std = (0.0,) * 3, (1.0,) * 3
  if is_normalized:
    images = images.astype(np.float32)
  else:
    mean, std = (100.0, 110.0, 120.0), (10.0, 20.0, 30.0)
  found = np.array(
    make(fill=fill)(jnp.array(images), keys_of(400), mean=mean, std=std)
  )
  assert found.dtype == np.float32
  both = jax.vmap(lambda key: jax.random.split(key, 2))(keys_of(400))
  boxes = np.array(
    erase_boxes(both[:, 0], 24, 20, probability=1.0, area=AREA, aspect=ASPECT)
  )
  filled = []
  for image, (top, left, h, w) in zip(found, boxes, strict=True):
    filled.append(image[top : top + h, left : left + w].reshape(-1, 3).copy())
    image[top : top + h, left : left + w] = 200
  np.testing.assert_array_equal(found, images)
  filled = (np.concatenate(filled) - mean) / std
  if fill == 'mean':
    assert (filled == 0).all()
    return
  assert stats.kstest(filled.ravel()[:20_000], stats.norm.cdf).pvalue > 0.001
  assert np.abs(np.corrcoef(filled.T) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'probability': 1.5}, r'erase_probability=1.5 is not in 0 \.\. 1'),
    ({'area': (0.5, 0.1)}, r'erase_area=\(0.5, 0.1\) is not a range'),
    ({'area': (0.5, 1.5)}, 'up to 1'),
    ({'aspect': (0.0, 1.0)}, 'erase_aspect'),
    ({'fill': 'black'}, "'black' is none of noise, mean"),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    make(**fields)
