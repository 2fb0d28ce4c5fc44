"""Metadata of weights: preprocessing, class names, the network's name."""

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from resnet.errors import InputError
from resnet.files import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
  """The preprocessing of images for a network.

  Attributes:
    mean: mean of each channel, for pixels from 0 to 1.
    std: standard deviation of each channel, for pixels from 0 to 1.
    image_size: side of the square image, pixels.
    crop_share: image_size / `resize_size`, the resized shorter side.
    interpolation: method of that resize: 'bilinear', 'bicubic', ...
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  image_size: int
  crop_share: float
  interpolation: str

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """[S, S, C] of an image, where C is 1 for grey images and 3 for RGB."""
    return self.image_size, self.image_size, len(self.mean)

  @property
  def resize_size(self) -> int:
    """The length to which the shorter side is resized, pixels."""
    # Round down, as timm does; the small term makes 8 / (8 / 9) give 9.
    size = math.floor(self.image_size / self.crop_share + 1e-6)
    return max(self.image_size, size)

  def __post_init__(self):
    """Raises ValueError for impossible values."""
    numbers = (*self.mean, *self.std, self.crop_share)
    if not all(map(math.isfinite, numbers)) or min(self.std, default=0) <= 0:
      raise ValueError(f'mean {self.mean}, std {self.std}')
    if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
      raise ValueError(f'{len(self.mean)} and {len(self.std)} channels')
    if self.image_size < 1 or not 0 < self.crop_share <= 4:
      raise ValueError(f'size {self.image_size}, share {self.crop_share}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """The metadata of weights; unknown values are None.

  Attributes:
    model: name of the network.
    shortcut: shortcut option of the network, if not the default.
    preprocessing: preprocessing of its images.
    class_names: names of the classes, in the order of the logits.
    ema: whether the weights are the moving averages of a run.
  """

  model: str | None = None
  shortcut: str | None = None
  preprocessing: Preprocessing | None = None
  class_names: tuple[str, ...] | None = None
  ema: bool | None = None

  def names_of(self, num_classes: int) -> tuple[str, ...]:
    """Returns the class name of each logit; logits without one get a number."""
    names = self.class_names if self.class_names and num_classes else ()
    if len(names) > num_classes:
      raise InputError(f'{len(names)} class names for {num_classes} classes.')
    return (*names, *map(str, range(len(names), num_classes)))

  @property
  def overrides(self) -> dict[str, str]:
    """The arguments of `create_model` besides the name."""
    return {'shortcut': self.shortcut} if self.shortcut else {}

  def to_header(self) -> dict[str, str]:
    """Returns the metadata in the form of a safetensors file's header."""
    return {'format': 'pt'} | {
      name: value if isinstance(value, str) else json.dumps(value)
      for name, value in dataclasses.asdict(self).items()
      if value is not None
    }


def from_header(path: str, header: Mapping[str, str]) -> Metadata:
  """Reads the metadata of a safetensors file."""
  with reading(f'The metadata of {path} are damaged'):
    preprocessing, names, ema = (
      json.loads(header.get(name, 'null'))
      for name in ('preprocessing', 'class_names', 'ema')
    )
    return Metadata(
      model=header.get('model'),
      shortcut=header.get('shortcut'),
      preprocessing=preprocessing and to_preprocessing(preprocessing),
      class_names=to_names(names),
      ema=ema,
    )


def to_preprocessing(fields: Any) -> Preprocessing:
  """Creates the preprocessing from parsed JSON."""
  return Preprocessing(
    mean=tuple(map(float, fields['mean'])),
    std=tuple(map(float, fields['std'])),
    image_size=int(fields['image_size']),
    crop_share=float(fields['crop_share']),
    interpolation=str(fields['interpolation']),
  )


def to_names(values: Any) -> tuple[str, ...] | None:
  """Creates the class names from parsed JSON."""
  return tuple(map(str, values)) if values else None


def from_workdir(path: str) -> Metadata:
  """Reads the config.json of a run."""
  with reading(f'{path} is not the config of a run'), open(path) as file:
    saved = json.load(file)
    config, derived = saved['config'], saved['derived']
    size = config.get('data.eval_size') or config['data.image_size']
    return Metadata(
      model=config['model.name'],
      shortcut=config['model.shortcut'],
      preprocessing=Preprocessing(
        mean=tuple(value / 255 for value in derived['mean']),
        std=tuple(value / 255 for value in derived['std']),
        image_size=size,
        crop_share=size / config['data.eval_resize'],
        interpolation=config['data.interpolation'],
      ),
      class_names=to_names(derived.get('class_names')),
    )
