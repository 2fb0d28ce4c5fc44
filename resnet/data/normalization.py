"""Mean and standard deviation of a data set's channels, in pixel units."""

import numpy as np

from resnet.data.host.decode import decode_record
from resnet.data.host.transforms import resize_and_center_crop
from resnet.data.host.warnings import too_many_bad_images
from resnet.data.sources.base import Source
from resnet.errors import InputError

Channels = tuple[float, ...]

# Published values for pixels from 0 to 1: ImageNet's from fb.resnet.torch and
# torchvision, CIFAR's over the pixels of the training images.
_PUBLISHED = {
  'imagenet2012': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'cifar10': ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

_MAX_IMAGES = 1024


def channel_statistics(
  source: Source, image_size: int, *, max_bad_images: int | None = None
) -> tuple[Channels, Channels]:
  """Returns mean and std of each channel, in units of 0..255 pixels.

  ImageNet and CIFAR have published values. Other sets are measured on up to
  1,024 images, evenly spaced over the split, so the result is reproducible. Up
  to `max_bad_images` broken images are left out; None allows none.
  """
  name = source.name.partition(':')[0]  # Without the version.
  if name in _PUBLISHED:
    mean, std = np.array(_PUBLISHED[name]) * 255
    return tuple(mean.tolist()), tuple(std.tolist())
  count = min(len(source), _MAX_IMAGES)
  indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
  sums, num_bad = np.zeros((2, source.channels)), 0
  for index in indices:
    try:
      image = decode_record(source, index, source.records[index])
    except InputError as error:
      if max_bad_images is None:
        raise
      num_bad += 1
      if num_bad > max_bad_images or num_bad == count:
        last = str(error)
        raise too_many_bad_images(num_bad, max_bad_images, last) from None
      continue
    image = resize_and_center_crop(image, image_size, image_size)
    pixels = image.reshape(-1, source.channels).astype(np.float64)
    sums += np.stack([pixels.mean(0), np.square(pixels).mean(0)])
  mean, mean_of_square = sums / (count - num_bad)
  std = np.sqrt(mean_of_square - np.square(mean))
  if not np.all(std > 1e-3):
    raise InputError(
      f'A channel of {source.name}/{source.split} is constant (mean'
      f' {mean.round(1).tolist()}, std {std.round(3).tolist()}): set data.mean'
      ' and data.std.'
    )
  return tuple(mean.tolist()), tuple(std.tolist())
