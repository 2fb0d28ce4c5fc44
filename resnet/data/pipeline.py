"""From the fields of `config.data` to the sources and transforms of a run."""

from collections.abc import Sequence
import dataclasses
import math
import os
from typing import Any

from resnet.data.augment.crop import DeviceAugment
from resnet.data.host.loader import LoaderOptions
from resnet.data.host.reader import Transform
from resnet.data.host.sizes import Pairs, check_schedule
from resnet.data.host.transforms import (
  EvalTransform,
  StoredTransform,
  TrainTransform,
)
from resnet.data.normalization import channel_statistics
from resnet.data.sources.base import Source
from resnet.data.sources.registry import open_source
from resnet.errors import InputError

# Pixels.
MAX_IMAGE_SIZE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The data of a run.

  Attributes:
    train: the source of training images.
    eval: the source of evaluation images.
    image_size: side of the training images that the network sees, pixels; at
      the end of the run, where there is a schedule.
    size_schedule: (epoch, side) pairs, from epoch 0 to `image_size`.
    train_transform: to `image_size`.
    eval_transform: for the latter.
    mean: of each channel, in units of 0..255 pixels.
    std: likewise.
    loader: how fast to read.
    max_bad_images: broken ones that may be left out; None: none is.
    augment: what the device does with training images; None: nothing.
    repeats: copies of a training image in a batch.
  """

  train: Source
  eval: Source
  image_size: int
  size_schedule: Pairs
  train_transform: Transform
  eval_transform: EvalTransform
  mean: tuple[float, ...]
  std: tuple[float, ...]
  loader: LoaderOptions
  max_bad_images: int | None
  augment: DeviceAugment | None = None
  repeats: int = 1


def create_data(
  *,
  name: str,
  data_dir: str | None,
  train_split: str,
  eval_split: str,
  image_size: int,
  size_schedule: Sequence[Sequence[float]],
  eval_size: int | None,
  crop: str,
  crop_area: tuple[float, float],
  crop_aspect: tuple[float, float],
  crop_padding: int,
  flip: bool,
  repeats: int,
  eval_resize: int,
  interpolation: str,
  augment_on: str,
  mean: tuple[float, ...] | None,
  std: tuple[float, ...] | None,
  num_workers: int,
  num_threads: int,
  prefetch_batches: int,
  on_bad_image: str,
  max_bad_images: int,
  max_worker_restarts: int,
) -> Data:
  """Opens both splits; the arguments are explained in configs/default.py.

  Raises:
    InputError: a value is out of its range, or the data cannot be opened.
  """
  eval_size = image_size if eval_size is None else eval_size
  for field, size in (('image_size', image_size), ('eval_size', eval_size)):
    if not 0 < size <= MAX_IMAGE_SIZE:
      raise InputError(
        f'data.{field}={size} must be positive, up to {MAX_IMAGE_SIZE}.'
      )
  schedule = check_schedule(size_schedule, image_size=image_size)
  if data_dir == '':
    raise InputError(
      "data.data_dir='' is no folder: leave it out, or name one."
    )
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  loader = LoaderOptions(
    num_workers=num_workers,
    num_threads=num_threads,
    prefetch_batches=prefetch_batches,
    max_worker_restarts=max_worker_restarts,
  )
  if repeats < 1:
    raise InputError(f'data.repeats={repeats} is too small: at least 1.')
  limit = _max_bad_images(on_bad_image, max_bad_images)
  train_transform = TrainTransform(
    size=image_size,
    crop=crop,
    area=_pair('crop_area', crop_area),
    aspect=_pair('crop_aspect', crop_aspect),
    padding=crop_padding,
    flip=flip,
    interpolation=interpolation,
  )
  for _, size in schedule:
    train_transform.with_size(size)  # Checks it.
  eval_transform = EvalTransform(
    size=eval_size, resize_size=eval_resize, interpolation=interpolation
  )
  train, eval_ = (
    open_source(
      name,
      split,
      data_dir=data_dir,
      image_size=image_size,
      split_flag=f'--config.data.{field}',
    )
    for field, split in (
      ('train_split', train_split),
      ('eval_split', eval_split),
    )
  )
  augment = _device_augment(augment_on, train_transform, train)
  if augment and augment.crop != 'random_resized' and len(schedule) > 1:
    raise InputError(
      f"data.size_schedule with data.augment_on='device' needs data.crop="
      f"'random_resized': {crop!r} does not resize."
    )
  if mean is None or std is None:
    measured_mean, measured_std = channel_statistics(
      train, image_size, max_bad_images=limit
    )
    mean = measured_mean if mean is None else mean
    std = measured_std if std is None else std
  mean = _numbers('mean', mean, train.channels)
  std = _numbers('std', std, train.channels)
  if min(std) <= 0:
    raise InputError(f'data.std={std} must be positive.')
  return Data(
    train=train,
    eval=eval_,
    image_size=image_size,
    size_schedule=schedule,
    train_transform=StoredTransform() if augment else train_transform,
    eval_transform=eval_transform,
    mean=mean,
    std=std,
    loader=loader,
    max_bad_images=limit,
    augment=augment,
    repeats=repeats,
  )


def _device_augment(
  augment_on: str, transform: TrainTransform, source: Source
) -> DeviceAugment | None:
  """Returns what the device does instead of `transform`; None: nothing."""
  choices = ('host', 'device')
  if augment_on not in choices:
    raise InputError(
      f'data.augment_on={augment_on!r} is none of {", ".join(choices)}.'
    )
  if augment_on == 'host':
    return None
  shape, size = source.image_shape, transform.size
  if shape is None:
    raise InputError(
      f"data.augment_on='device' needs images of one size, and those of"
      f' {source.name!r} differ: python -m resnet.tools.prepare --raw --resize='
      f'{size * 8 // 7} stores such.'
    )
  if transform.crop != 'random_resized' and shape[:2] != (size, size):
    raise InputError(
      f"data.augment_on='device' with data.crop={transform.crop!r} needs images"
      f' of data.image_size={size}, and those of {source.name!r} are'
      f' {shape[0]}x{shape[1]}: --config.data.image_size={shape[0]}'
    )
  if transform.interpolation != 'bilinear':
    raise InputError(
      "data.augment_on='device' resizes by data.interpolation='bilinear' only."
    )
  return DeviceAugment(
    size=size,
    crop=transform.crop,
    area=transform.area,
    aspect=transform.aspect,
    padding=transform.padding,
    flip=transform.flip,
  )


def _max_bad_images(on_bad_image: str, limit: int) -> int | None:
  """Returns the number of broken images to leave out; None: none is."""
  choices = ('error', 'skip')
  if on_bad_image not in choices:
    raise InputError(
      f'data.on_bad_image={on_bad_image!r} is none of {", ".join(choices)}.'
    )
  if limit < 0:
    raise InputError(f'data.max_bad_images={limit} is too small: at least 0.')
  return limit if on_bad_image == 'skip' else None


def _pair(field: str, values: Sequence[Any]) -> tuple[float, float]:
  low, high = _numbers(field, values, 2)
  return low, high


def _numbers(
  field: str, values: Sequence[Any], count: int
) -> tuple[float, ...]:
  """Returns `count` floats; a command line may bring anything."""
  try:
    numbers = tuple(float(value) for value in values)
  except (TypeError, ValueError):
    numbers = ()
  if len(numbers) != count or not all(map(math.isfinite, numbers)):
    raise InputError(
      f'data.{field}={tuple(values)} is not {count} finite number(s): type'
      f" --config.data.{field}='({', '.join(['1.0'] * count)},)'"
    )
  return numbers
