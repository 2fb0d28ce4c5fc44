"""Image files by name, decoded ahead of their use in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import os
from typing import TypeVar

import cv2
import numpy as np

from resnet.data.sources.folder import IMAGE_SUFFIXES, visible_entries
from resnet.errors import InputError

Key = TypeVar('Key')


def list_images(paths: Sequence[str]) -> list[str]:
  """Returns the images at paths: files as they are, folders by what is below.

  A folder gives its files that end in .png, .jpg or .jpeg, sorted by name. The
  rules are those of training on folders: hidden files are passed over, links
  are followed.

  Raises:
    InputError: there is no such path, a folder cannot be read, or holds no
      image.
  """
  files = []
  for path in paths:
    if os.path.isdir(path):
      found = sorted(_images_below(path, ()))
      if not found:
        raise InputError(
          f'{path} holds no image: no file that ends in'
          f' {", ".join(IMAGE_SUFFIXES)}.'
        )
      files += found
    elif os.path.isfile(path):
      files.append(path)
    else:
      raise InputError(f'There is no image and no folder at {path!r}.')
  return files


def _images_below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  real = os.path.realpath(folder)
  if real in above:  # A link to a folder that it lies in.
    return
  try:
    entries = list(visible_entries(folder))
  except OSError as error:
    raise InputError(f'{folder} cannot be read: {error.strerror}.') from None
  for entry in entries:
    if entry.is_dir():
      yield from _images_below(entry.path, (*above, real))
    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
      yield entry.path


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
