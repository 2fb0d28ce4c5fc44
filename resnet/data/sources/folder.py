"""Image files in class folders: DIR/train/CLASS/FILE and DIR/val/CLASS/FILE.

A label is the index of the class folder's name in sorted order, as in
torchvision and timm. Classes are named after their folders, unless the file
DIR/classes.txt names them: a line 'FOLDER NAME' for each class folder, where
names may hold blanks and must differ. Blank lines and lines that start with #
are ignored.
"""

from collections.abc import Iterator
import dataclasses
import os
import re
from typing import Any

import grain.python as grain
import numpy as np
import tensorflow_datasets as tfds

from resnet.data.sources.base import Records, Source
from resnet.errors import InputError, nearest, reason_of
from resnet.files import reading

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
_TRAIN = 'train'
# File managers and archives leave these behind, in upper or lower case. Names
# with a leading dot are also ignored.
_IGNORED = ('thumbs.db', 'desktop.ini', '@eadir', '__macosx')


@dataclasses.dataclass(frozen=True)
class FolderRecords:
  """Random access to the files of a split.

  It holds only file names, in one array per class, to save memory with 1.3
  million files.

  Attributes:
    root: folder that holds the class folders.
    folders: class folders in the order of the labels.
    names: file names of each class, arrays of bytes.
    ends: number of files up to and including each class, int64 [num_classes].
  """

  root: str
  folders: tuple[str, ...]
  names: tuple[np.ndarray, ...]
  ends: np.ndarray

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, key: int, /) -> dict[str, Any]:
    label = int(np.searchsorted(self.ends, key, side='right'))
    # `ends[label]` is the end of the class, so this index is negative.
    name = os.fsdecode(self.names[label][key - int(self.ends[label])])
    name = os.path.join(self.folders[label], name)
    path = os.path.join(self.root, name)
    with reading(f'{path} cannot be read'), open(path, 'rb') as file:
      return {'image': file.read(), 'label': label, 'file_name': name}


def open_split(split: str, *, data_dir: str | None, **_: Any) -> Source:
  """Opens a split, and reads only the names of its files.

  Args:
    split: name of a folder in `data_dir`; 'validation' also finds val/. A part
      of it, such as 'train[:90%]', is taken from a fixed random order.
    data_dir: folder with train/ and val/.
  """
  if data_dir is None:
    raise InputError(
      "data.name='folder' needs the folder that holds train/ and val/:"
      ' --config.data.data_dir=PATH'
    )
  splits = _folders(data_dir)
  if _TRAIN not in splits:
    raise InputError(
      f'{data_dir} holds {", ".join(splits[:5]) or "no folders"}, not train/.'
      ' Expected PATH/train/CLASS/FILE and PATH/val/CLASS/FILE.'
    )
  name, part = split, ''
  if split not in splits and '[' in split:
    name, part = split[: split.index('[')], split[split.index('[') :]
  # TFDS and the configs call this split 'validation'.
  name = 'val' if name == 'validation' and name not in splits else name
  if name not in splits:
    raise InputError(
      f'{data_dir} has no folder for the split {split!r}. There are:'
      f' {", ".join(splits)}. Choose with --config.data.train_split and'
      ' --config.data.eval_split.'
    )
  root = os.path.join(data_dir, name)
  classes, own = (_folders(f'{data_dir}/{x}', 2) for x in (_TRAIN, name))
  if odd := sorted({*classes} ^ {*own}):
    raise InputError(
      f'{root} and {_TRAIN}/ differ in {len(odd)} class folder(s):'
      f' {", ".join(odd[:3])}. Labels come from the sorted names, so both must'
      ' have the same class folders.'
    )
  files = [_file_names(os.path.join(root, name)) for name in classes]
  records: Records = FolderRecords(
    root=root,
    folders=tuple(classes),
    names=tuple(np.array(list(map(os.fsencode, names))) for names in files),
    ends=np.cumsum([len(names) for names in files]),
  )
  if part:
    records = _part(records, name, part)
  return Source(
    name='folder',
    split=split,
    num_classes=len(classes),
    channels=3,
    records=records,
    class_names=_class_names(os.path.join(data_dir, 'classes.txt'), classes),
  )


def _class_names(path: str, folders: list[str]) -> tuple[str, ...]:
  """Returns the names of `folders` in classes.txt, or `folders` without it."""
  if not os.path.exists(path):
    return tuple(folders)
  failure = f'{path} cannot be read as UTF-8 text'
  with reading(failure), open(path, encoding='utf-8-sig') as file:
    lines = [line.strip() for line in file]
  # A folder's name may hold blanks too; the longest that fits counts.
  longest_first = map(re.escape, sorted(folders, key=len, reverse=True))
  pattern = re.compile(rf'({"|".join(longest_first)})\s+(.+)')
  names: dict[str, str] = {}
  for number, line in enumerate(lines, 1):
    if not line or line.startswith('#'):
      continue
    place = f'{path}, line {number}: '
    match = pattern.fullmatch(line)
    if match is None:
      raise InputError(
        f'{place}{line!r} is not a class folder and a name: type FOLDER NAME,'
        ' or delete the file to use the names of the folders.'
        f'{nearest(line.split()[0], folders)}'
      )
    folder, name = match.groups()
    if folder in names or name in names.values():
      raise InputError(
        f'{place}{folder if folder in names else name!r} occurs twice: type one'
        ' line for each class folder, with a name of its own.'
      )
    names[folder] = name
  if missing := [folder for folder in folders if folder not in names]:
    raise InputError(
      f'{path} has no line for {len(missing)} class folder(s):'
      f' {", ".join(missing[:3])}. Add lines such as: {missing[0]} NAME'
    )
  return tuple(names[folder] for folder in folders)


def _shuffled(records: Records) -> Any:
  """Returns records in a random order that depends only on their number.

  Parts of a split that is sorted by class are taken from this order, so that
  they hold images of all classes.
  """
  return grain.MapDataset.source(records).shuffle(seed=0)  # pyright: ignore[reportArgumentType]


def _part(records: Records, name: str, part: str) -> Records:
  """Returns a part such as '[:90%]' of the split `name`, as in TFDS."""
  info = tfds.core.SplitInfo(
    name=name, shard_lengths=[len(records)], num_bytes=0
  )
  try:
    spec = tfds.core.ReadInstruction.from_spec(name + part)
    [found] = spec.to_absolute({name: info})
    start = found.from_ or 0
    stop = len(records) if found.to is None else found.to
    if start >= stop:
      raise ValueError('it is empty')
  except ValueError as error:
    raise InputError(
      f'{name + part!r} is not a part of {name!r}, which has {len(records):,}'
      f' images ({reason_of(error)}): type {name}[:90%], for example.'
    ) from None
  return _shuffled(records)[start:stop]


def open_splits(folder: str, _: str) -> dict[str, Source]:
  """Opens train/ and the first of val/, validation/ and test/ that exists.

  Their records are shuffled, so that a part of the prepared set holds images of
  all classes.
  """
  folders = _folders(folder)
  names = [x for x in ('val', 'validation', 'test') if x in folders][:1]
  splits = {
    'validation' if name == 'val' else name: open_split(name, data_dir=folder)
    for name in ('train', *(names or ['val']))
  }
  return {
    name: dataclasses.replace(source, records=_shuffled(source.records))
    for name, source in splits.items()
  }


def visible_entries(folder: str) -> Iterator[os.DirEntry[str]]:
  """Yields the entries of a folder, except hidden ones and `_IGNORED` names."""
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        name = entry.name
        if not name.startswith('.') and name.lower() not in _IGNORED:
          yield entry
  except OSError as error:
    raise InputError(
      f'{folder} cannot be read as a folder: {reason_of(error)}. For'
      ' training, images must be in PATH/train/CLASS and PATH/val/CLASS.'
    ) from None


def _folders(root: str, at_least: int = 0) -> list[str]:
  """Returns the sorted names of the folders in a folder."""
  entries = list(visible_entries(root))
  names = sorted(entry.name for entry in entries if entry.is_dir())
  if len(names) < at_least:
    raise InputError(
      f'{root} must hold at least two class folders, but holds {len(names)}'
      f' folders and {len(entries) - len(names):,} files: sort the images into'
      ' one folder per class.'
    )
  return names


def _file_names(folder: str) -> list[str]:
  names, odd = [], []
  for entry in visible_entries(folder):
    is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
    (names if is_image and not entry.is_dir() else odd).append(entry.name)
  if odd or not names:
    raise InputError(
      f'{folder} must hold only images ({", ".join(IMAGE_SUFFIXES)}), but holds'
      f' {", ".join(sorted(odd)[:3]) or "nothing"}: convert or move these, or'
      ' remove an empty class folder from train/ and val/.'
    )
  return sorted(names)
