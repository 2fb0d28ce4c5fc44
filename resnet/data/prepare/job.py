"""Describes a set to be prepared: its images, their encoding and its size."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

from resnet.data.host.decode import COLORSPACES, decode_image, is_cmyk
from resnet.data.host.resize import resize
from resnet.data.host.transforms import resize_and_center_crop
from resnet.data.sources.base import Source
from resnet.errors import InputError

# JPEG quality when a file is re-encoded only to change its colour space.
_FAITHFUL_QUALITY = 98
# Size estimate: images per split, and bytes of a record besides the image.
_NUM_SAMPLES, _RECORD_BYTES = 32, 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """How images are stored.

  Attributes:
    channels: number of image channels, 1 or 3.
    resize: shorter side to which larger images are shrunk, pixels (Lanczos,
      with antialiasing); None keeps all sizes.
    quality: JPEG quality of shrunk images, 1 to 100.
    raw: store pixels, not files. With `resize`, every image is shrunk or
      enlarged to that shorter side, and its central square is stored.
  """

  channels: int
  resize: int | None
  quality: int
  raw: bool

  def __post_init__(self):
    if self.resize is not None and not 8 <= self.resize <= 4096:
      raise InputError(f'--resize={self.resize} is not in 8 .. 4096 pixels.')
    if not 1 <= self.quality <= 100:
      raise InputError(f'--quality={self.quality} is not in 1 .. 100.')

  def encode(self, image: bytes | np.ndarray) -> bytes | np.ndarray:
    """Returns an image file, or uint8 [H, W, channels] if `raw`.

    Every image is decoded, so that a broken one raises a ValueError. A file
    that needs no shrinking stays the same, unless it is CMYK, which TFDS itself
    cannot read.
    """
    pixels = decode_image(image, self.channels)
    if self.raw:
      if self.resize is None:
        return pixels
      return resize_and_center_crop(pixels, self.resize, self.resize, 'lanczos')
    sides, shorter = pixels.shape[:2], min(pixels.shape[:2])
    if self.resize is not None and shorter > self.resize:
      height, width = (round(side * self.resize / shorter) for side in sides)
      return _jpeg(resize(pixels, height, width, 'lanczos'), self.quality)
    if isinstance(image, np.ndarray):
      return cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
    return _jpeg(pixels, _FAITHFUL_QUALITY) if is_cmyk(image) else image


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(pixels),
    quality=quality,
    colorspace=COLORSPACES[pixels.shape[-1]],
    colorsubsampling='420',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A set to be prepared.

  Attributes:
    name: name of the set in TFDS.
    folder: folder of the finished set, NAME/VERSION.
    splits: splits to write, by name; all have the same classes.
    encoding: how images are stored.
    origin: JSON that identifies the source images; an unfinished set is
      resumed only if its origin is the same.
    skip_bad: leave broken images out instead of stopping.
  """

  name: str
  folder: str
  splits: Mapping[str, Source]
  encoding: Encoding
  origin: Mapping[str, Any]
  skip_bad: bool = False

  @property
  def unfinished(self) -> pathlib.Path:
    """The folder of the set until it is complete."""
    return pathlib.Path(f'{self.folder}.incomplete')

  @property
  def class_names(self) -> list[str] | None:
    """The class names of all splits, in the order of the labels."""
    names = next(iter(self.splits.values())).class_names
    return list(names) if names else None

  @functools.cached_property
  def num_bytes(self) -> int:
    """The size of the set on disk, estimated from a few images."""
    total = 0.0
    for source in self.splits.values():
      indices = np.linspace(0, len(source) - 1, _NUM_SAMPLES).astype(int)
      sizes = []
      for record in source.read(sorted({*indices.tolist()})):
        # `writer` reports broken images.
        with contextlib.suppress(ValueError):
          image: Any = self.encoding.encode(record['image'])
          sizes.append(memoryview(image).nbytes + _RECORD_BYTES)
      total += len(source) * float(np.mean(sizes or [0]))
    return int(total)

  @functools.cached_property
  def features(self) -> Any:
    """The features of a record in TFDS."""
    source, names = next(iter(self.splits.values())), self.class_names
    image: Any = tfds.features.Image(shape=(None, None, self.encoding.channels))
    if self.encoding.raw:
      pixels: Any = self.encoding.encode(source.records[0]['image'])
      image = tfds.features.Tensor(
        shape=pixels.shape, dtype=np.uint8, encoding='bytes'
      )
    label = tfds.features.ClassLabel(
      names=names, num_classes=None if names else source.num_classes
    )
    return tfds.features.FeaturesDict(
      {'image': image, 'label': label, 'file_name': tfds.features.Text()}
    )


def check_disk(job: Job) -> None:
  """Raises an InputError if the disk has no room for the rest of the set."""
  written = job.unfinished.glob('*.array_record-*')
  needed = 1.05 * job.num_bytes - sum(path.stat().st_size for path in written)
  folder = next(filter(os.path.exists, job.unfinished.absolute().parents))
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise InputError(
      f'{job.folder} needs about {needed / 1e9:,.1f} GB more, but only'
      f' {free / 1e9:,.1f} GB are free: choose another --out, or store less'
      ' (--resize=256).'
    )
