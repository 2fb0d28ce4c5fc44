"""Finds image files and decodes them in threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import os

import cv2
import numpy as np

from resnet.data.sources.folder import IMAGE_SUFFIXES, visible_entries
from resnet.errors import InputError
from resnet.files import reading


def list_images(paths: Sequence[str]) -> dict[str, str]:
  """Maps each image file at `paths` to its name in the results.

  A folder contributes all files below it that end in .png, .jpg or .jpeg, in
  sorted order, each named by its path relative to the folder. As when
  training on folders, hidden files are ignored and links are followed.
  """
  files = {}
  for path in paths:
    if os.path.isdir(path):
      found = sorted(_images_below(path, ()))
      if not found:
        endings = ', '.join(IMAGE_SUFFIXES)
        raise InputError(f'{path} holds no file that ends in {endings}.')
      files |= {file: os.path.relpath(file, path) for file in found}
    elif os.path.isfile(path):
      files[path] = os.path.basename(path)
    else:
      raise InputError(f'There is no image and no folder at {path!r}.')
  return files


def _images_below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  real = os.path.realpath(folder)
  if real in above:  # A link to a parent folder.
    return
  for entry in list(visible_entries(folder)):
    if entry.is_dir():
      yield from _images_below(entry.path, (*above, real))
    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
      yield entry.path


def decode_files(
  files: Sequence[str],
  decode: Callable[[bytes], np.ndarray],
  pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields each file with its pixels, in order.

  Memory must hold the pixels of all files. `decode` raises a ValueError for a
  broken image. A file that cannot be read or decoded raises an InputError that
  names it.
  """
  cv2.setNumThreads(0)  # The pool is already multithreaded.

  def load(path: str) -> np.ndarray:
    with reading(f'{path} cannot be read'), open(path, 'rb') as file:
      data = file.read()
    with reading(f'{path} cannot be decoded'):
      return decode(data)

  return zip(files, pool.map(load, files), strict=True)
