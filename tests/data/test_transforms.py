"""Geometry in pixels, randomness in numbers."""

import math

import cv2
import numpy as np
import pytest
from scipy import stats

from resnet.data import transforms
from resnet.data.transforms import EvalTransform, TrainTransform
from resnet.errors import InputError
from tests.data.in_memory import smooth_image


def test_shrinking_averages_and_enlarging_interpolates():
  image = np.array([[10, 20, 0, 4], [30, 40, 8, 12]], np.uint8)[..., None]
  assert transforms.resize(image, 1, 2).tolist() == [[[25], [6]]]
  line = np.array([[0, 100]], np.uint8)[..., None]
  assert transforms.resize(line, 1, 4).ravel().tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize(
  ('shape', 'resized', 'size', 'top', 'left'),
  [
    ((9, 12), (9, 12), 4, 2, 4),
    ((5, 8), (5, 8), 5, 0, 1),
    ((8, 5), (8, 5), 4, 2, 0),
    ((333, 500), (256, 384), 224, 16, 80),
    ((475, 300), (405, 256), 224, 90, 16),
  ],
)
def test_centre_crop_takes_these_pixels(shape, resized, size, top, left):
  image = smooth_image(*shape)
  whole = cv2.resize(image, resized[::-1], interpolation=cv2.INTER_AREA)
  crop = transforms.resize_and_center_crop(image, min(resized), size)
  expected = whole[top : top + size, left : left + size]
  np.testing.assert_array_equal(crop, expected)


@pytest.fixture
def draw_crops(monkeypatch):
  """Draws crops of an image; returns arrays of top, left, height, width."""

  def draw(height, width, count, area, aspect=(3 / 4, 4 / 3)):
    image = np.stack(np.mgrid[:height, :width], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(transforms, 'resize', lambda crop, *_: crop)
    crops = [
      transforms.random_resized_crop(
        image, rng, size=1, area=area, aspect=aspect
      )
      for _ in range(count)
    ]
    return np.array([(*crop[0, 0], *crop.shape[:2]) for crop in crops], int).T

  return draw


def test_crop_area_is_uniform_and_aspect_log_uniform(draw_crops):
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


@pytest.mark.parametrize(('height', 'width'), [(240, 180), (150, 256)])
def test_crop_that_does_not_fit_is_drawn_again(height, width, draw_crops):
  _, _, h, w = draw_crops(height, width, 4000, area=(0.08, 1.0))
  # The definition, all at once: without rounding and without a last try.
  rng = np.random.default_rng(1)
  area = height * width * rng.uniform(0.08, 1.0, 40_000)
  aspect = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 40_000))
  fits = (area * aspect <= width**2) & (area / aspect <= height**2)
  assert 0.5 < fits.mean() < 0.95
  assert stats.ks_2samp(h * w, area[fits]).pvalue > 0.01
  assert stats.ks_2samp(w / h, aspect[fits]).pvalue > 0.01


@pytest.mark.parametrize(
  ('shape', 'rectangle'),
  [((6, 240), (0, 116, 6, 8)), ((240, 6), (116, 0, 8, 6))],
)
def test_extreme_image_gives_its_centre(shape, rectangle, draw_crops):
  crops = draw_crops(*shape, 20, area=(0.5, 1.0))
  assert set(map(tuple, crops.T.tolist())) == {rectangle}


def test_pad_and_crop_takes_every_window_equally_often():
  image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = [padded[y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
  counts = {window.tobytes(): 0 for window in windows}
  rng = np.random.default_rng(0)
  for _ in range(5000):
    counts[transforms.pad_and_crop(image, rng, padding=2).tobytes()] += 1
  assert len(counts) == 25
  assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_random_flip_mirrors_half_of_the_images():
  image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
  rng = np.random.default_rng(0)
  results = [transforms.random_flip(image, rng).tolist() for _ in range(4000)]
  mirrored = results.count([[[3, 4, 5], [0, 1, 2]]])
  assert mirrored + results.count(image.tolist()) == 4000
  assert stats.binomtest(mirrored, 4000).pvalue > 0.01


TRAIN = {
  'size': 24,
  'crop': 'random_resized',
  'area': (0.08, 1.0),
  'aspect': (3 / 4, 4 / 3),
  'padding': 4,
  'flip': True,
}
EVAL = EvalTransform(size=24, resize_size=28)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'shape', [(1, 1), (2, 3), (1, 90), (90, 1), (24, 24), (1500, 31), (700, 1200)]
)
def test_any_image_becomes_a_uint8_square(shape, channels):
  image = smooth_image(*shape)[..., :channels]
  image.setflags(write=False)
  crops = ('random_resized', 'pad', 'none')
  trains = [TrainTransform(**TRAIN | {'crop': crop}) for crop in crops]
  for transform in (*trains, EVAL):
    result = transform(image, np.random.default_rng(0))
    assert (result.shape, result.dtype) == ((24, 24, channels), np.uint8)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('crop', ['random_resized', 'pad', 'none'])
def test_train_transform_crops_and_flips_as_told(crop, flip):
  transform = TrainTransform(**TRAIN | {'crop': crop, 'flip': flip})
  ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None], (24, 24, 1))
  results = [transform(ramp, np.random.default_rng(n)) for n in range(40)]
  mirrored = [image[12, 6, 0] > image[12, 18, 0] for image in results]
  assert any(mirrored) == flip and not all(mirrored)
  distinct = len({image.tobytes() for image in results})
  assert distinct == flip + 1 if crop == 'none' else distinct > 8


@pytest.mark.parametrize(
  ('argument', 'value', 'field'),
  [
    ('crop', 'center', 'crop'),
    ('area', (0.0, 1.0), 'crop_area'),
    ('area', (0.5, 0.4), 'crop_area'),
    ('area', (0.5, 1.01), 'crop_area'),
    ('area', (math.nan, 1.0), 'crop_area'),
    ('aspect', (-1.0, 1.0), 'crop_aspect'),
    ('aspect', (2.0, 1.0), 'crop_aspect'),
    ('padding', -1, 'crop_padding'),
  ],
)
def test_bad_argument_is_named_as_its_field(argument, value, field):
  with pytest.raises(InputError, match=f'data.{field}='):
    TrainTransform(**TRAIN | {argument: value})


def test_eval_resize_below_the_size_is_refused():
  with pytest.raises(
    InputError, match=r'data.eval_resize=31 is not in 32 \.\. 256'
  ):
    EvalTransform(size=32, resize_size=31)
