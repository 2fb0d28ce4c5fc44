"""Geometry in pixels, randomness in numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from resnet.data import transforms
from resnet.data.resample import resize
from resnet.data.transforms import EvalTransform, TrainTransform
from resnet.errors import InputError
from tests.data.in_memory import smooth_image


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


@pytest.mark.parametrize(('height', 'width'), [(240, 180), (150, 256)])
def test_crop_that_does_not_fit_is_drawn_again(height, width):
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
def test_extreme_image_gives_its_centre(shape, rectangle):
  crops = draw_crops(*shape, 20, area=(0.5, 1.0))
  assert set(map(tuple, crops.T.tolist())) == {rectangle}


def test_pad_and_crop_takes_every_window_equally_often():
  image = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  windows = [padded[y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
  counts = {window.tobytes(): 0 for window in windows}
  for draws in np.random.default_rng(0).random((5000, 2)):
    counts[transforms.pad_and_crop(image, draws, padding=2).tobytes()] += 1
  assert len(counts) == 25
  assert stats.chisquare(list(counts.values())).pvalue > 0.01


def apply(transform, image, seed=0):
  """Runs a transform as the reader does."""
  draws = np.random.default_rng(seed).random(transform.num_draws).tolist()
  box = transform.box(*image.shape[:2], draws)
  return transform(image[: box.bottom], box, draws)


def test_half_of_the_images_are_mirrored():
  image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  transform = TrainTransform(
    **TRAIN | {'size': 2, 'crop': 'none', 'padding': 0}
  )
  results = [apply(transform, image, seed).tolist() for seed in range(4000)]
  mirrored = results.count(image[:, ::-1].tolist())
  assert mirrored + results.count(image.tolist()) == 4000
  assert stats.binomtest(mirrored, 4000).pvalue > 0.01


def test_boxes_have_the_distribution_of_torchvision():
  torch = pytest.importorskip('torch')
  v2 = pytest.importorskip('torchvision.transforms.v2')
  torch.manual_seed(0)
  for height, width in ((375, 500), (500, 334), (100, 300)):
    ours = draw_crops(height, width, 3000, area=(0.08, 1.0))
    theirs = np.array(
      [
        v2.RandomResizedCrop.make_params(
          v2.RandomResizedCrop(8), [torch.zeros(1, height, width)]
        )
        for _ in range(3000)
      ]
    )
    theirs = np.array(
      [[box[k] for k in ('top', 'left', 'height', 'width')] for box in theirs]
    ).T
    for pair in (
      *zip(ours, theirs, strict=True),
      (ours[2] * ours[3], theirs[2] * theirs[3]),
      (ours[3] / ours[2], theirs[3] / theirs[2]),
    ):
      assert stats.ks_2samp(*pair).pvalue > 0.001


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
    result = apply(transform, image)
    assert (result.shape, result.dtype) == ((24, 24, channels), np.uint8)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('crop', ['random_resized', 'pad', 'none'])
def test_train_transform_crops_and_flips_as_told(crop, flip):
  transform = TrainTransform(**TRAIN | {'crop': crop, 'flip': flip})
  ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None], (24, 24, 1))
  results = [apply(transform, ramp, seed) for seed in range(40)]
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
    ('interpolation', 'area', 'interpolation'),
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
