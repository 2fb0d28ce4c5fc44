"""Opens sources of labelled images by name.

Valid names are those of TFDS classification sets in a random-access format,
`folder` (image files in class folders), `digits` (prepared on first use) and
`fake` (synthetic). Images are read undecoded, and TensorFlow is never imported.
"""

from collections.abc import Callable
import os
import re
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from resnet.data.sources import digits, fake, imagenet
from resnet.data.sources import folder as folder_lib
from resnet.data.sources.base import Source
from resnet.data.sources.tfds import TfdsRecords, is_pixels
from resnet.errors import InputError, nearest, reason_of


def _open_digits(split: str, *, data_dir: str | None, **_: Any) -> Source:
  digits.prepare(data_dir)
  return _open_prepared(_find_prepared('digits', data_dir), 'digits', split)


# Sources that the user need not prepare with TFDS.
_OWN: dict[str, Callable[..., Source]] = {
  'fake': fake.open_split,
  'folder': folder_lib.open_split,
  'digits': _open_digits,
}


def open_source(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  image_size: int | None = None,
) -> Source:
  """Opens a split of a data set.

  Args:
    name: 'digits', 'fake', 'folder', or a TFDS name: 'set',
      'set/config:version'.
    split: a TFDS split; for 'folder', a folder in `data_dir`.
    data_dir: folder of prepared sets; None for TFDS's default ($TFDS_DATA_DIR
      or ~/tensorflow_datasets). For 'folder', the folder with train/ and val/.
    image_size: side of the images of 'fake', pixels.
  """
  if name in _OWN:
    return _OWN[name](split, data_dir=data_dir, image_size=image_size)
  return _open_prepared(_find_prepared(name, data_dir), name, split)


def open_splits(folder: str, _: str) -> dict[str, Source]:
  """Opens all splits of a prepared set from its folder, DIR/NAME/VERSION."""
  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # A damaged folder raises errors of any type.
    raise InputError(
      f'{folder} is not a prepared TFDS set ({reason_of(error)}): give the'
      ' folder of a version, DIR/NAME/VERSION, that holds dataset_info.json.'
    ) from None
  return {
    split: _open_prepared(builder, builder.info.name, split)
    for split in builder.info.splits
  }


def open_same_classes(
  train: Source, name: str, split: str | None, *, data_dir: str | None
) -> Source:
  """Opens a set whose labels have the same meaning as those of `train`.

  An example is ImageNet-V2 for `imagenet2012`: TFDS reads its folders 0 to 999
  as labels and gives both sets the class names of labels.txt, the WordNet ids
  in order. (The source `folder` sorts folder names as text: other labels.)
  If `split` is None, the set must have a single split.
  """
  if split is None:
    found = [] if name in _OWN else _find_prepared(name, data_dir).info.splits
    splits = list(map(str, found))
    if len(splits) != 1:
      known = f' There are: {", ".join(splits)}.' if splits else ''
      raise InputError(
        f'{name!r} does not have exactly one split: choose with'
        f' --split=SPLIT.{known}'
      )
    split = splits[0]
  size = train.image_shape[0] if train.image_shape else None
  source = open_source(name, split, data_dir=data_dir, image_size=size)
  for what in ('num_classes', 'channels', 'class_names'):
    have, want = getattr(source, what), getattr(train, what)
    if have != want and have and want:
      if what == 'class_names':
        have, want = next(
          x for x in zip(have, want, strict=True) if len({*x}) > 1
        )
      raise InputError(
        f'{name}/{split} has {what.replace("_", " ")} {have!r}, but the'
        f' training data {train.name!r} has {want!r}: expected the same in the'
        ' same order.'
      )
  return source


def _open_prepared(builder: Any, name: str, split: str) -> Source:
  fields: dict[str, Any] = dict(builder.info.features)
  image: Any = fields.get('image')
  label: Any = fields.get('label')
  shape: Any = getattr(image, 'shape', None)
  if (
    not (isinstance(image, tfds.features.Image) or is_pixels(image))
    or not isinstance(label, tfds.features.ClassLabel)
    or label.num_classes is None
    or shape[-1] not in (None, 1, 3)
  ):
    raise InputError(
      f'{name!r} is not a set of labelled images: it needs the features'
      " 'image' (Image, or a uint8 Tensor [H, W, C] with encoding 'bytes'; C"
      " is 1 or 3) and 'label' (ClassLabel with a known number of classes),"
      f' but has {fields}.'
    )
  try:
    part = builder.info.splits[split]
  except ValueError as error:
    raise InputError(
      f'{name!r} has no split {split!r}. There are:'
      f' {", ".join(builder.info.splits) or "none"} ({reason_of(error)})'
    ) from None
  if part.num_examples <= 0:
    raise InputError(f'The split {split!r} of {name!r} has no images.')
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise InputError(
      f'{name!r} is prepared in {builder.data_dir}, but not for random access.'
      f' Prepare it again in another folder: {_how_to_prepare(name, "DIR")}'
    )
  names = tuple(label.names)
  # Without names, TFDS numbers the classes.
  is_named = names != tuple(map(str, range(len(names))))
  return Source(
    name=name,
    split=split,
    num_classes=label.num_classes,
    channels=shape[-1] or 3,
    records=TfdsRecords(
      part.file_instructions, tuple(shape) if is_pixels(image) else None
    ),
    class_names=names if is_named else None,
    image_shape=None if None in shape else tuple(shape),
  )


def _find_prepared(name: str, data_dir: str | None) -> Any:
  set_name = re.split('[/:]', name)[0]
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  except Exception as error:  # A damaged folder raises errors of any type.
    if re.fullmatch('[a-z][a-z0-9_]*', set_name):
      raise InputError(
        f'data.name={name!r} cannot be read (data.data_dir={data_dir}):'
        f' {reason_of(error)}'
      ) from error
  folder = data_dir or os.fspath(constants.DATA_DIR)
  known = {*tfds.list_builders(with_community_datasets=False), *_OWN}
  if set_name not in known or set_name in _OWN:
    raise InputError(
      f'There is no data set {name!r} in TFDS or in {folder}.'
      f'{nearest(name, known)}'
    )
  raise InputError(
    f'{name!r} is not prepared in {folder}. Prepare it with:'
    f' {_how_to_prepare(name, folder)}'
  )


def _how_to_prepare(name: str, data_dir: str) -> str:
  if name == imagenet.NAME:
    return (
      'python -m resnet.tools.prepare --from=imagenet --source=FOLDER_OF_TARS'
      f' --out={data_dir} (extracted class folders need no preparation:'
      ' --config.data.name=folder --config.data.data_dir=PATH)'
    )
  # `tfds build` would require Apache Beam for any set.
  return (
    'python -c "import tensorflow_datasets as tfds;'
    f" tfds.builder('{name}', data_dir='{data_dir}',"
    " file_format='array_record').download_and_prepare()\" (many sets need"
    ' `pip install tensorflow-cpu`, for this step only)'
  )
