"""Maps WordNet ids of ImageNet's classes to English names."""

import functools
import pathlib

_FILE = pathlib.Path(__file__).with_name('imagenet_names.txt')


def readable_name(class_name: str) -> str:
  """Returns the name of an ImageNet class for its WordNet id.

  Any other class name is returned unchanged. Use it for display only: files and
  metadata keep the id.
  """
  return _names_by_id().get(class_name, class_name)


def class_ids() -> tuple[str, ...]:
  """Returns the WordNet ids of ImageNet's classes, in order of the labels."""
  return tuple(_names_by_id())


@functools.cache
def _names_by_id() -> dict[str, str]:
  lines = _FILE.read_text().splitlines()
  return dict(line.split(' ', 1) for line in lines if not line.startswith('#'))
