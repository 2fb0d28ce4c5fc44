"""The preprocessing of images for a network that is not being trained."""

import dataclasses
import math


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
