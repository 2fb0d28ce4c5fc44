"""Image files in class folders: DIR/train/CLASS/FILE and DIR/val/CLASS/FILE.

A label is the place of the class folder's name in sorted order, as in
torchvision and timm.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from resnet.errors import InputError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
# The name by which TFDS and the configs know it, beside that of the folder.
_ALIASES = {'validation': 'val'}
_TRAIN = 'train'
# Left behind by file managers and archives, in any case; names with a leading
# dot are passed over too.
_IGNORED = ('thumbs.db', 'desktop.ini', '@eadir', '__macosx')
# Folders to evaluate on, the most likely first.
_EVAL_NAMES = ('val', 'validation', 'valid', 'test')


@dataclasses.dataclass(frozen=True)
class FolderRecords:
  """Random access to the files of a split.

  Of 1.3 million files only the names are held, in one piece a class.

  Attributes:
    root: of the class folders.
    class_names: in the order of the labels.
    names: of each class's files, joined by '/'.
    ends: [num_classes], int64: files up to and including each class.
    starts: of the names of each class's files, places in `names`.
  """

  root: str
  class_names: tuple[str, ...]
  names: tuple[bytes, ...]
  ends: np.ndarray
  starts: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]:
    return [self._read(key) for key in keys]

  def path(self, key: int) -> tuple[int, str]:
    """Returns the label of a file, and its path below the root."""
    label = int(np.searchsorted(self.ends, key, side='right'))
    nth = key - (int(self.ends[label - 1]) if label else 0)
    starts, names = self.starts[label], self.names[label]
    end = int(starts[nth + 1]) - 1 if nth + 1 < len(starts) else len(names)
    name = os.fsdecode(names[int(starts[nth]) : end])
    return label, os.path.join(self.class_names[label], name)

  def num_bytes(self) -> int:
    """Returns the size of all files; asks the file system for each."""
    return sum(
      os.stat(os.path.join(self.root, self.path(key)[1])).st_size
      for key in range(len(self))
    )

  def _read(self, key: int) -> dict[str, Any]:
    label, path = self.path(key)
    try:
      with open(os.path.join(self.root, path), 'rb') as file:
        image = file.read()
    except OSError as error:
      raise InputError(
        f'{os.path.join(self.root, path)} cannot be read:'
        f' {error.strerror or error}.'
      ) from None
    return {'image': image, 'label': label, 'file_name': path}


def open_folder(
  data_dir: str | None, split: str, split_flag: str | None = None
) -> FolderRecords:
  """Finds the files of a split.

  Args:
    data_dir: the folder that holds train/ and val/.
    split: the name of a folder in it; 'validation' is val/.
    split_flag: that gives the split, for a message.

  Raises:
    InputError: there is no such folder; fewer than two classes; a class
      without images; other classes than in train/; a file that is no image.
  """
  if data_dir is None:
    raise InputError(
      "data.name='folder' needs the folder that holds train/ and val/:"
      ' --config.data.data_dir=PATH'
    )
  splits = _splits(data_dir)
  name = split if split in splits else _ALIASES.get(split, split)
  if name not in splits:
    raise InputError(
      f'{data_dir} has no folder for the split {split!r}. There are:'
      f' {", ".join(splits)}. {_split_hint(split, splits, split_flag)}'
    )
  classes = _class_names(os.path.join(data_dir, _TRAIN))
  root = os.path.join(data_dir, name)
  if name != _TRAIN:
    _check_same_classes(root, _class_names(root), classes)
  files = [_file_names(os.path.join(root, name)) for name in classes]
  return FolderRecords(
    root=root,
    class_names=classes,
    names=tuple(b'/'.join(map(os.fsencode, names)) for names in files),
    ends=np.cumsum([len(names) for names in files]),
    starts=tuple(_starts(names) for names in files),
  )


def _split_hint(split: str, splits: Sequence[str], flag: str | None) -> str:
  """Returns what to type in the place of a split that is not there."""
  whole, bracket, _ = split.partition('[')
  prefix = f'{flag}=' if flag else ''
  if bracket and _ALIASES.get(whole, whole) in splits:
    return (
      f'Parts of a split, such as {split}, need a prepared set (python -m'
      f' resnet.tools.prepare --help); the whole one is {prefix}{whole}'
    )
  if prefix.endswith('train_split='):
    return f'Images to train on lie in {_TRAIN}/: {prefix}{_TRAIN}'
  others = [name for name in splits if name != _TRAIN]
  known = [name for name in _EVAL_NAMES if name in others]
  if not others or not flag:
    return 'Put images to evaluate on into PATH/val/CLASS.'
  return f'Name one: {prefix}{(known or others)[0]}'


def _starts(names: list[str]) -> np.ndarray:
  lengths = [len(os.fsencode(name)) + 1 for name in names[:-1]]
  # Names of a class of ImageNet take 30 kB: 32 bits are enough.
  return np.cumsum([0, *lengths], dtype=np.int32)


def visible_entries(folder: str) -> Iterator[os.DirEntry[str]]:
  """Yields what lies in a folder, without hidden files and leftovers.

  Raises:
    OSError: the folder cannot be read.
  """
  with os.scandir(folder) as entries:
    for entry in entries:
      name = entry.name
      if not name.startswith('.') and name.lower() not in _IGNORED:
        yield entry


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
  try:
    yield from visible_entries(folder)
  except OSError as error:
    raise InputError(
      f'{folder} cannot be read as a folder: {error.strerror or error}.'
      ' Expected class folders in PATH/train and PATH/val:'
      ' --config.data.data_dir=PATH'
    ) from None


def _splits(data_dir: str) -> list[str]:
  folders = sorted(e.name for e in _entries(data_dir) if e.is_dir())
  if _TRAIN in folders:
    return folders
  found = (
    f'it holds the folders {", ".join(folders[:5])}'
    if folders
    else ('it holds no folders')
  )
  hint = ''
  if 'val' in map(str.lower, folders) or 'train' in map(str.lower, folders):
    hint = ' Small letters are meant.'
  elif os.path.basename(os.path.normpath(data_dir)) in (_TRAIN, *_EVAL_NAMES):
    above = os.path.dirname(os.path.normpath(data_dir)) or os.curdir
    hint = f' Name the folder above: {above}'
  elif len(folders) > 1:
    hint = (
      ' If these are classes, move them into train/, and some images of each'
      ' into val/.'
    )
  raise InputError(
    f'{data_dir} has no train/: {found}. Expected'
    f' PATH/train/CLASS/FILE.jpg and PATH/val/CLASS/FILE.jpg.{hint}'
  )


def _class_names(root: str) -> tuple[str, ...]:
  entries = list(_entries(root))
  names = sorted(e.name for e in entries if e.is_dir())
  images = sum(e.name.lower().endswith(IMAGE_SUFFIXES) for e in entries)
  if not names and images:
    raise InputError(
      f'{root} holds {images:,} images and no class folders: sort them into'
      ' one folder a class. (The validation images of ImageNet come unsorted:'
      ' python -m resnet.tools.prepare --from=imagenet reads the tar files.)'
    )
  if len(names) < 2:
    found = f'only one: {names[0]}' if names else 'none'
    raise InputError(
      f'{root} must hold class folders, two at least, and holds {found}.'
    )
  by_letters: dict[str, str] = {}
  for name in names:
    other = by_letters.setdefault(name.casefold(), name)
    if other != name:
      raise InputError(
        f'{root} has two class folders of one name, {other!r} and {name!r}:'
        ' rename or merge them.'
      )
  return tuple(names)


def _check_same_classes(
  root: str, names: Sequence[str], expected: Sequence[str]
) -> None:
  for have, want, what in (
    (set(names), set(expected), 'misses'),
    (set(expected), set(names), 'has more than train/:'),
  ):
    if odd := sorted(want - have):
      more = f' and {len(odd) - 3} others' if len(odd) > 3 else ''
      raise InputError(
        f'{root} {what} {len(odd)} class folder(s): {", ".join(odd[:3])}{more}.'
        ' Labels come from the sorted names, so train/ and val/ need the same'
        ' ones.'
      )


def _file_names(folder: str) -> list[str]:
  names, odd = [], []
  for entry in _entries(folder):
    is_image = (
      entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()
    )
    (names if is_image else odd).append(entry.name)
  if odd:
    more = f' and {len(odd) - 1:,} others' if len(odd) > 1 else ''
    raise InputError(
      f'{os.path.join(folder, min(odd))}{more} cannot be an image: expected'
      f' files {", ".join(IMAGE_SUFFIXES)} in a class folder. Convert them or'
      ' move them away.'
    )
  if not names:
    raise InputError(
      f'{folder} is a class folder without images'
      f' ({", ".join(IMAGE_SUFFIXES)}):'
      ' add some, or remove the folder from train/ and val/.'
    )
  names.sort()
  return names
