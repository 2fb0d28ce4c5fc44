"""Image files by name, decoded ahead of their use in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import os
from typing import TypeVar

import cv2
import numpy as np

from resnet.errors import InputError

_SUFFIXES = ('.png', '.jpg', '.jpeg')

Key = TypeVar('Key')


def list_images(paths: Sequence[str]) -> list[str]:
  """Returns the images at paths: files as they are, folders by what is below.

  A folder gives its files that end in .png, .jpg or .jpeg, sorted by name.

  Raises:
    InputError: there is no such path, or a folder without images.
  """
  files = []
  for path in paths:
    if os.path.isdir(path):
      found = sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(_SUFFIXES)
      )
      if not found:
        raise InputError(
          f'{path} holds no image: no file that ends in {", ".join(_SUFFIXES)}.'
        )
      files += found
    elif os.path.isfile(path):
      files.append(path)
    else:
      raise InputError(f'There is no image and no folder at {path!r}.')
  return files


def name_targets(
  paths: Sequence[str], files: Sequence[str], folder: str
) -> dict[str, str]:
  """Returns a place in `folder` for what is made of each file.

  Args:
    paths: as `list_images` was given.
    files: as it returned: those of a folder keep their place in it.
    folder: of the targets.

  Raises:
    InputError: two files would have the same.
  """
  roots = [path for path in paths if os.path.isdir(path)]
  targets, taken = {}, {}
  for file in files:
    root = next((r for r in roots if file.startswith(os.path.join(r, ''))), '')
    name = os.path.relpath(file, root) if root else os.path.basename(file)
    target = targets[file] = os.path.join(folder, name)
    if taken.setdefault(target, file) != file:
      raise InputError(
        f'What is made of {file} and of {taken[target]} would both be {target}:'
        ' take them one by one.'
      )
  return targets


def decode_ahead(
  files: Iterable[str],
  decode: Callable[[bytes], np.ndarray],
  *,
  num_threads: int,
  ahead: int,
) -> Iterator[tuple[str, np.ndarray | InputError]]:
  """Yields each file with its pixels, in order.

  A file that cannot be read or decoded comes with an error that names it.

  Args:
    files: to read.
    decode: raises ValueError for what is no image.
    num_threads: that decode.
    ahead: decoded images that may wait.
  """
  cv2.setNumThreads(0)  # The threads are ours.

  def load(path: str) -> np.ndarray | InputError:
    try:
      with open(path, 'rb') as file:
        return decode(file.read())
    except OSError as error:
      return InputError(f'{path} cannot be read: {error.strerror or error}.')
    except ValueError as error:
      return InputError(f'{path} cannot be decoded: {error}.')

  with ThreadPoolExecutor(num_threads) as pool:
    waiting = deque()
    try:
      for path in files:
        waiting.append((path, pool.submit(load, path)))
        if len(waiting) > ahead:
          path, future = waiting.popleft()
          yield path, future.result()
      while waiting:
        path, future = waiting.popleft()
        yield path, future.result()
    finally:
      for _, future in waiting:
        future.cancel()


def in_batches(
  images: Iterable[tuple[Key, np.ndarray]], size: int
) -> Iterator[tuple[list[Key], np.ndarray]]:
  """Yields `size` images at a time, or less: [V, ...] each, as [B * V, ...]."""
  keys, arrays = [], []
  for key, image in images:
    keys.append(key)
    arrays.append(image)
    if len(keys) == size:
      yield keys, np.concatenate(arrays)
      keys, arrays = [], []
  if keys:
    yield keys, np.concatenate(arrays)
