"""Real images in the folder of `real_data`."""

import pathlib
import tarfile

import pytest


def cifar10_test_images(real_data):
  """Yields the class and the bytes of each, classes and files sorted."""
  path = real_data / 'cifar10-jpeg.tar.xz'
  if not path.exists():
    pytest.skip(f'no real images: there is no {path}')
  last = ''
  with tarfile.open(path, 'r|xz') as archive:
    for member in archive:
      split, *parts = pathlib.PurePath(member.name).parts
      if split == 'test' and len(parts) == 2:
        assert member.name > last
        last = member.name
        yield parts[0], archive.extractfile(member).read()
