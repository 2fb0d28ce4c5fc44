"""Creates the sources and transforms of a run from `config.data`."""

import dataclasses
import os
from typing import Any

from resnet.data.augment.crop import DeviceCrop
from resnet.data.host import transforms
from resnet.data.host.loader import LoaderOptions
from resnet.data.host.size_schedule import Pairs, check_schedule
from resnet.data.normalization import channel_statistics
from resnet.data.sources.base import Source
from resnet.data.sources.registry import open_source
from resnet.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The data of a run.

  Attributes:
    train: source of training images.
    eval: source of evaluation images.
    size_schedule: (first epoch, side) pairs; the last side is `image_size`.
    train_transform: transform of training images on the host.
    eval_transform: transform of evaluation images.
    mean: mean of each channel, in units of 0..255 pixels.
    std: standard deviation of each channel, in the same units.
    loader: workers, threads and read-ahead.
    max_bad_images: number of broken images that may be left out; None raises
      an error for the first one.
    device_crop: crop and flip of training images on the device, or None.
  """

  train: Source
  eval: Source
  size_schedule: Pairs
  train_transform: transforms.Transform
  eval_transform: transforms.EvalTransform
  mean: tuple[float, ...]
  std: tuple[float, ...]
  loader: LoaderOptions
  max_bad_images: int | None
  device_crop: DeviceCrop | None = None


def create_data(config: Any, source: Source | None = None) -> Data:
  """Opens both splits of `config.data` and creates their transforms.

  If `source` is given, it replaces both splits.

  Raises:
    InputError: fields contradict each other, or the data cannot be opened.
  """
  size, eval_size = config.image_size, config.eval_size or config.image_size
  schedule = check_schedule(config.size_schedule, image_size=size)
  if not 0 <= config.crop_padding <= schedule[0][1]:
    raise InputError(
      f'data.crop_padding={config.crop_padding} is not in 0 .. {schedule[0][1]}'
      ' (data.image_size, or the first side in data.size_schedule).'
    )
  if not eval_size <= config.eval_resize <= 8 * eval_size:
    raise InputError(
      f'data.eval_resize={config.eval_resize} is not in {eval_size} ..'
      f' {8 * eval_size} (1 to 8 times the side of evaluation images).'
    )
  train_transform = transforms.TrainTransform(
    size=size,
    crop=config.crop,
    area=tuple(config.crop_area),
    aspect=tuple(config.crop_aspect),
    padding=config.crop_padding,
    flip=config.flip,
    interpolation=config.interpolation,
  )
  train, eval_ = (
    source
    or open_source(
      config.name,
      split,
      data_dir=config.data_dir and os.path.expanduser(config.data_dir),
      image_size=size,
    )
    for split in (config.train_split, config.eval_split)
  )
  device_crop = None
  if config.augment_on == 'device':
    device_crop = _device_crop(train_transform, train, schedule)
  elif config.cache is not None:
    raise InputError(
      f'data.cache={config.cache!r} needs crops on the device: type'
      ' --config.data.augment_on=device'
    )
  limit = config.max_bad_images if config.on_bad_image == 'skip' else None
  mean, std = _statistics(config, train, limit)
  return Data(
    train=train,
    eval=eval_,
    size_schedule=schedule,
    train_transform=transforms.Transform() if device_crop else train_transform,
    eval_transform=transforms.EvalTransform(
      size=eval_size,
      resize_size=config.eval_resize,
      interpolation=config.interpolation,
    ),
    mean=mean,
    std=std,
    loader=LoaderOptions(
      **{x.name: config[x.name] for x in dataclasses.fields(LoaderOptions)}
    ),
    max_bad_images=limit,
    device_crop=device_crop,
  )


def _statistics(
  config: Any, source: Source, max_bad_images: int | None
) -> list[tuple[float, ...]]:
  """Returns the mean and the standard deviation of each channel."""
  given = {'mean': config.mean, 'std': config.std}
  if None in given.values():
    measured = channel_statistics(
      source, config.image_size, max_bad_images=max_bad_images
    )
    for field, values in zip(given, measured, strict=True):
      given[field] = values if given[field] is None else given[field]
  for field, values in given.items():
    if len(values) != source.channels:
      raise InputError(
        f'data.{field}={values} has {len(values)} number(s), but the images of'
        f' {source.name!r} have {source.channels} channel(s): type one each,'
        f" --config.data.{field}='{(128.0,) * source.channels}'"
      )
  return [tuple(map(float, values)) for values in given.values()]


def _device_crop(
  transform: transforms.TrainTransform, source: Source, schedule: Pairs
) -> DeviceCrop:
  """Returns the device's counterpart of `transform`."""
  shape, size = source.image_shape, transform.size
  if shape is None:
    raise InputError(
      "data.augment_on='device' needs images of one size, which"
      f' {source.name!r} does not have: prepare them with'
      f' python -m resnet.tools.prepare --raw --resize={size * 8 // 7}'
    )
  if transform.crop != 'random_resized' and (
    shape[:2] != (size, size) or len(schedule) > 1
  ):
    raise InputError(
      f"data.augment_on='device' needs data.crop='random_resized':"
      f' {transform.crop!r} does not resize {shape[0]}x{shape[1]} pixels to'
      f' data.image_size={size} or the sizes of data.size_schedule.'
    )
  if transform.interpolation != 'bilinear':
    raise InputError(
      "data.augment_on='device' needs data.interpolation='bilinear'."
    )
  fields = dataclasses.fields(DeviceCrop)
  return DeviceCrop(**{x.name: getattr(transform, x.name) for x in fields})
