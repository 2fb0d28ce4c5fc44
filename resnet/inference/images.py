"""Image files by name, decoded in threads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import os

import cv2
import numpy as np

from resnet.data.sources.folder import IMAGE_SUFFIXES, visible_entries
from resnet.errors import InputError


def list_images(paths: Sequence[str]) -> dict[str, str]:
  """Returns the images at paths, and a name for what is made of each.

  A folder gives the files below it that end in .png, .jpg or .jpeg, sorted;
  their names are their paths in it. The rules are those of training on folders:
  hidden files are passed over, links are followed.

  Raises:
    InputError: there is no such path, a folder cannot be read, or holds no
      image.
  """
  files = {}
  for path in paths:
    if os.path.isdir(path):
      found = sorted(_images_below(path, ()))
      if not found:
        raise InputError(
          f'{path} holds no image: no file that ends in'
          f' {", ".join(IMAGE_SUFFIXES)}.'
        )
      files |= {file: os.path.relpath(file, path) for file in found}
    elif os.path.isfile(path):
      files[path] = os.path.basename(path)
    else:
      raise InputError(f'There is no image and no folder at {path!r}.')
  return files


def _images_below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  real = os.path.realpath(folder)
  if real in above:  # A link to a folder that it lies in.
    return
  for entry in list(visible_entries(folder)):
    if entry.is_dir():
      yield from _images_below(entry.path, (*above, real))
    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
      yield entry.path


def check_names_differ(files: Mapping[str, str]) -> None:
  """Raises InputError where two files of `list_images` have one name."""
  taken = {}
  for file, name in files.items():
    if taken.setdefault(name, file) != file:
      raise InputError(
        f'What is made of {taken[name]} and of {file} would both be {name}:'
        ' take them one by one.'
      )


def decode_files(
  files: Sequence[str],
  decode: Callable[[bytes], np.ndarray],
  pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, np.ndarray | InputError]]:
  """Yields each file with its pixels, in order.

  A file that cannot be read or decoded comes with an error that names it.

  Args:
    files: to read, all of them at once.
    decode: raises ValueError for what is no image.
    pool: the threads that decode.
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

  return zip(files, pool.map(load, files), strict=True)
