"""Geometry in pixels, randomness in numbers."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from resnet.data.host import transforms
from resnet.data.host.resize import resize
from resnet.data.host.transforms import EvalTransform
from tests.data.in_memory import smooth_image
from tests.data.readers import AUGMENT


@pytest.mark.parametrize(
  ('shape', 'resized', 'size', 'top', 'left'),
  [
    ((9, 12), (9, 12), 4, 2, 4),
    ((5, 8), (5, 8), 5, 0, 2),
    ((8, 5), (8, 5), 4, 2, 0),
    ((333, 500), (256, 384), 224, 16, 80),
    # Half a pixel is rounded to even, as torchvision does: 90.5 and 91.5.
    ((475, 300), (405, 256), 224, 90, 16),
    ((477, 300), (407, 256), 224, 92, 16),
  ],
)
def test_centre_crop_takes_these_pixels(shape, resized, size, top, left):
  image = smooth_image(*shape)
  whole = resize(image, *resized)
  crop = transforms.resize_and_center_crop(image, min(resized), size)
  expected = whole[top : top + size, left : left + size]
  np.testing.assert_array_equal(crop, expected)


def draw_crops(height, width, count, area, aspect=(3 / 4, 4 / 3)):
  """Returns arrays of top, left, height, width."""
  draws = np.random.default_rng(0).random((count, transforms.BOX_DRAWS))
  boxes = [
    transforms.random_box(height, width, numbers, area=area, aspect=aspect)
    for numbers in draws.tolist()
  ]
  return np.array(boxes).T


def test_crop_area_is_uniform_and_aspect_log_uniform():
  # These always fit into a square, so no draw is refused.
  area, aspect = (0.1, 0.5), (0.6, 1.5)
  top, left, h, w = draw_crops(256, 256, 4000, area, aspect)
  samples = [
    (h * w / 256**2 - 0.1) / 0.4,
    np.log(w / h / 0.6) / math.log(1.5 / 0.6),
    (top + 0.5) / (257 - h),
    (left + 0.5) / (257 - w),
  ]
  for sample in samples:
    assert stats.kstest(sample, 'uniform').pvalue > 0.01
  assert np.abs(np.corrcoef(samples) - np.eye(4)).max() < 4 / 4000**0.5
  assert top.min() == left.min() == 0
  assert (top + h).max() == (left + w).max() == 256


def test_crop_that_does_not_fit_is_drawn_again():
  height, width = 150, 256
  _, _, h, w = draw_crops(height, width, 4000, area=(0.08, 1.0))
  # The definition, all at once: without rounding and without a last try.
  rng = np.random.default_rng(1)
  area = height * width * rng.uniform(0.08, 1.0, 40_000)
  aspect = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 40_000))
  fits = (area * aspect <= width**2) & (area / aspect <= height**2)
  assert 0.5 < fits.mean() < 0.95
  assert stats.ks_2samp(h * w, area[fits]).pvalue > 0.01
  assert stats.ks_2samp(w / h, aspect[fits]).pvalue > 0.01


def test_extreme_image_gives_its_centre():
  for shape, box in (((6, 240), (0, 116, 6, 8)), ((240, 6), (116, 0, 8, 6))):
    crops = draw_crops(*shape, 20, area=(0.5, 1.0))
    assert set(map(tuple, crops.T.tolist())) == {box}


def test_pad_and_crop_takes_every_window_equally_often():
  image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = [padded[y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
  counts = {window.tobytes(): 0 for window in windows}
  for draws in np.random.default_rng(0).random((5000, 2)):
    counts[transforms.pad_and_crop(image, draws, padding=2).tobytes()] += 1
  assert len(counts) == 25
  assert stats.chisquare(list(counts.values())).pvalue > 0.01


TRAIN = dataclasses.replace(AUGMENT, size=24, padding=4)


def apply(transform, image, seed=0):
  """Runs a transform as the reader does."""
  draws = np.random.default_rng(seed).random(transform.num_draws).tolist()
  box = transform.box(*image.shape[:2], draws)
  return transform(image[: box.bottom], box, draws)


@pytest.mark.parametrize('shape', [(1, 1), (2, 3), (1, 90), (90, 1)])
def test_an_image_of_few_pixels_becomes_a_uint8_square(shape):
  image = smooth_image(*shape)[..., :1]
  image.setflags(write=False)
  crops = ('random_resized', 'pad', 'none')
  trains = [dataclasses.replace(TRAIN, crop=crop) for crop in crops]
  for transform in (*trains, EvalTransform(size=24, resize_size=28)):
    result = apply(transform, image)
    assert (result.shape, result.dtype) == ((24, 24, 1), np.uint8)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('crop', ['random_resized', 'pad', 'none'])
def test_images_are_cropped_and_half_of_them_mirrored(crop, flip):
  transform = dataclasses.replace(TRAIN, crop=crop, flip=flip)
  ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None], (24, 24, 1))
  results = [apply(transform, ramp, seed) for seed in range(400)]
  is_mirrored = [image[12, 6, 0] > image[12, 18, 0] for image in results]
  chance = 0.5 if flip else 0.0
  assert stats.binomtest(sum(is_mirrored), 400, chance).pvalue > 0.01
  distinct = {image.tobytes() for image in results}
  if crop == 'none':
    both = {ramp.tobytes(), ramp[:, ::-1].tobytes()}
    assert distinct == (both if flip else {ramp.tobytes()})
  else:
    assert len(distinct) > 8
