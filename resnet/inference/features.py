"""Writes features of images to a file of NumPy."""

from collections.abc import Iterable

import numpy as np

from resnet.errors import InputError, readable
from resnet.files import replacing, writing


def write_features(
  path: str, batches: Iterable[tuple[list[str], np.ndarray]]
) -> None:
  """Writes a .npz file, which appears only once it is complete.

  It has the arrays 'files' (text) and 'features', which are collected in memory
  first. A batch is B file names and their features [B, ...].
  """
  if not path.endswith('.npz'):
    raise InputError(f'{path} must end in .npz.')
  with writing(path), replacing(path) as part:
    collected = list(batches)
    if not collected:
      raise InputError(f'There are no features to write to {path}.')
    names, features = zip(*collected, strict=True)
    files = [readable(name) for some in names for name in some]
    # NumPy would add .npz to a path, but not to an open file.
    with open(part, 'wb') as file:
      np.savez(file, files=np.array(files), features=np.concatenate(features))
