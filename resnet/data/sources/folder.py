"""Image files in class folders: DIR/train/CLASS/FILE and DIR/val/CLASS/FILE.

A label is the place of the class folder's name in sorted order, as in
torchvision and timm.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
from typing import Any

import numpy as np

from resnet.data.sources.base import Source
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

  Of 1.3 million files only the names are held, in one array per class.

  Attributes:
    root: of the class folders.
    class_names: in the order of the labels.
    names: of each class's files, arrays of bytes.
    ends: [num_classes], int64: files up to and including each class.
  """

  root: str
  class_names: tuple[str, ...]
  names: tuple[np.ndarray, ...]
  ends: np.ndarray

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]:
    return [self._read(key) for key in keys]

  def path(self, key: int) -> tuple[int, str]:
    """Returns the label of a file, and its path below the root."""
    label = int(np.searchsorted(self.ends, key, side='right'))
    # Counted from the end of the class's names.
    name = os.fsdecode(self.names[label][key - int(self.ends[label])])
    return label, os.path.join(self.class_names[label], name)

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


def open_split(
  split: str,
  *,
  data_dir: str | None,
  split_flag: str | None = None,
  **_: Any,
) -> Source:
  """Finds the files of a split.

  Args:
    split: the name of a folder in `data_dir`; 'validation' is val/.
    data_dir: the folder that holds train/ and val/.
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
      f' {", ".join(splits)}. {_split_hint(split, splits, split_flag or "")}'
    )
  root = os.path.join(data_dir, name)
  classes = _class_names(os.path.join(data_dir, _TRAIN))
  if name != _TRAIN:
    _check_same_classes(root, _class_names(root), classes)
  files = [_file_names(os.path.join(root, name)) for name in classes]
  records = FolderRecords(
    root=root,
    class_names=classes,
    names=tuple(np.array(list(map(os.fsencode, names))) for names in files),
    ends=np.cumsum([len(names) for names in files]),
  )
  return Source(
    name='folder',
    split=split,
    num_classes=len(classes),
    channels=3,
    records=records,
    class_names=classes,
  )


def open_splits(folder: str, _: str) -> dict[str, Source]:
  """Returns the splits 'train' and 'validation', which is val/."""
  return {
    split: open_split(name, data_dir=folder)
    for split, name in (('train', 'train'), ('validation', 'val'))
  }


def _split_hint(split: str, splits: Sequence[str], flag: str) -> str:
  """Returns what to type in the place of a split that is not there."""
  whole, bracket, _ = split.partition('[')
  if bracket:
    return (
      f'Parts of a split, such as {split}, need a prepared set (python -m'
      ' resnet.tools.prepare --help); the whole one is'
      f' {f"{flag}={whole}" if flag else whole}'
    )
  if flag.endswith('train_split'):
    return f'Images to train on lie in {_TRAIN}/: {flag}={_TRAIN}'
  known = [name for name in _EVAL_NAMES if name in splits]
  if not known or not flag:
    return 'Put images to evaluate on into PATH/val/CLASS.'
  return f'Name one: {flag}={known[0]}'


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
  above, name = os.path.split(os.path.abspath(data_dir))
  hint = ''
  if name in (_TRAIN, *_EVAL_NAMES):
    hint = f' Name the folder above: {above}'
  elif len(folders) > 1:
    hint = (
      ' If these are classes, move them into train/, and some images of each'
      ' into val/.'
    )
  raise InputError(
    f'{data_dir} has no train/: it holds the folders'
    f' {", ".join(folders[:5]) or "(none)"}. Expected PATH/train/CLASS/FILE.jpg'
    f' and PATH/val/CLASS/FILE.jpg.{hint}'
  )


def _class_names(root: str) -> tuple[str, ...]:
  entries = list(_entries(root))
  names = sorted(e.name for e in entries if e.is_dir())
  if len(names) < 2:
    raise InputError(
      f'{root} must hold class folders, two at least, and holds'
      f' {len(names)} beside {len(entries) - len(names):,} files: sort images'
      ' into one folder a class. (The validation images of ImageNet come'
      ' unsorted: python -m resnet.tools.prepare --from=imagenet reads the tar'
      ' files.)'
    )
  return tuple(names)


def _check_same_classes(
  root: str, names: Sequence[str], expected: Sequence[str]
) -> None:
  for odd, what in (
    (sorted(set(expected) - set(names)), 'misses'),
    (sorted(set(names) - set(expected)), 'has more than train/:'),
  ):
    if odd:
      raise InputError(
        f'{root} {what} {len(odd)} class folder(s): {_some(odd)}. Labels come'
        ' from the sorted names, so train/ and val/ need the same ones.'
      )


def _some(names: Sequence[str]) -> str:
  more = f' and {len(names) - 3:,} others' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more


def _file_names(folder: str) -> list[str]:
  names, odd = [], []
  for entry in _entries(folder):
    is_image = (
      entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()
    )
    (names if is_image else odd).append(entry.name)
  if odd:
    raise InputError(
      f'{folder} holds what cannot be an image: {_some(sorted(odd))}. Expected'
      f' files {", ".join(IMAGE_SUFFIXES)}: convert the others or move them'
      ' away.'
    )
  if not names:
    raise InputError(
      f'{folder} is a class folder without images: add some, or remove the'
      ' folder from train/ and val/.'
    )
  return sorted(names)
