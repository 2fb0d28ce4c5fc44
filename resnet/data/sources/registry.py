"""Random-access sources of labelled images, by name.

A source is any TFDS classification set that is prepared in a random-access
format, `folder` (image files in class folders), `digits` (prepared on first
use), or `fake` (made up on the fly).
Images are read undecoded; TensorFlow is never imported.
"""

import contextlib
import io
import os
import re
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from resnet.data.sources import imagenet
from resnet.data.sources.base import Source
from resnet.data.sources.fake import LENGTHS, FakeRecords
from resnet.data.sources.folder import open_folder
from resnet.data.sources.tfds import LABELS, is_pixels, open_records
from resnet.errors import InputError, nearest

# What TFDS takes for the name of a set.
_SET_NAME = '[a-z][a-z0-9_]*'


def open_source(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  image_size: int | None = None,
  split_flag: str | None = None,
) -> Source:
  """Opens a split of a data set.

  Args:
    name: 'digits', 'fake', 'folder', or a TFDS name: 'set',
      'set/config:version'.
    split: a TFDS split; for 'folder' a folder in `data_dir`.
    data_dir: where TFDS keeps prepared sets; None is TFDS's own default
      ($TFDS_DATA_DIR or ~/tensorflow_datasets). For 'folder': what holds
      train/ and val/.
    image_size: of the images that 'fake' makes.
    split_flag: that gives the split, for a message.

  Raises:
    InputError: no such set or split, the set is not prepared, or it is not a
      set of labelled images.
  """
  if name == 'fake':
    return _fake_source(split, image_size or 32)
  if name == 'folder':
    return _folder_source(data_dir, split, split_flag)
  if name == 'digits':
    _prepare_digits(data_dir)
  builder = _find_prepared(name, data_dir)
  channels, label, shape = _check_features(name, builder.info.features)
  try:
    num_examples = builder.info.splits[split].num_examples
  except ValueError as error:
    raise InputError(
      f'{name!r} has no split {split!r}. There are:'
      f' {", ".join(builder.info.splits) or "none"}'
      f' ({str(error).splitlines()[0]})'
    ) from None
  if num_examples <= 0:
    raise InputError(f'The split {split!r} of {name!r} has no images.')
  try:
    records = open_records(builder, split)
  except NotImplementedError:
    raise InputError(
      f'{name!r} is prepared in {builder.data_dir}, but not for random access.'
      f' Prepare it again in another folder: {_prepare_command(name, "DIR")}'
    ) from None
  return Source(
    name=name,
    split=split,
    num_classes=label.num_classes,
    channels=channels,
    records=records,
    class_names=_class_names(label),
    image_shape=shape,
  )


def only_split(name: str, data_dir: str | None = None) -> str:
  """Returns the split of a set that has one.

  Args:
    name: as of `open_source`.
    data_dir: likewise.

  Raises:
    InputError: no such set, or it has several splits.
  """
  if name == 'digits':
    _prepare_digits(data_dir)
  if name == 'fake':
    splits = list(LENGTHS)
  elif name == 'folder':
    splits = ['train', 'val']
  else:
    splits = list(_find_prepared(name, data_dir).info.splits)
  if len(splits) != 1:
    raise InputError(
      f'{name!r} has the splits {", ".join(splits) or "of no name"}: name one,'
      f' --split={splits[-1] if splits else "SPLIT"}'
    )
  return splits[0]


def _find_prepared(name: str, data_dir: str | None) -> Any:
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  except Exception as error:  # Whatever a damaged folder makes TFDS raise.
    if re.fullmatch(_SET_NAME, _set_name(name)):
      reason = str(error).splitlines()[0] if str(error) else repr(error)
      raise InputError(
        f'data.name={name!r} cannot be read (data.data_dir={data_dir}):'
        f' {reason}'
      ) from error
  folder = data_dir or os.fspath(constants.DATA_DIR)
  known = tfds.list_builders(with_community_datasets=False)
  known = {*known, 'digits', 'fake', 'folder'}
  set_name = _set_name(name)
  if set_name not in known or set_name in ('digits', 'fake'):
    raise InputError(
      f'There is no data set {name!r} in TFDS or in {folder}.'
      f'{nearest(name, known)}'
    )
  if set_name == imagenet.NAME and (hint := imagenet.what_is_there(folder)):
    raise InputError(f'{name!r} is not prepared in {folder}. {hint}')
  raise InputError(
    f'{name!r} is not prepared in {folder}.'
    f' Prepare it with: {_prepare_command(name, folder)}'
    ' (many sets need `pip install tensorflow-cpu` for this step, and for it'
    ' alone).'
  )


def _set_name(name: str) -> str:
  """'set/config:version' -> 'set'."""
  return name.partition('/')[0].partition(':')[0]


def _prepare_command(name: str, data_dir: str) -> str:
  # Not `tfds build`, which asks for Apache Beam whatever the set.
  return (
    'python -c "import tensorflow_datasets as tfds;'
    f" tfds.builder('{name}', data_dir='{data_dir}',"
    " file_format='array_record').download_and_prepare()\""
  )


def _class_names(label: Any) -> tuple[str, ...] | None:
  names = tuple(label.names)
  # Where a builder gives none, TFDS counts.
  return None if names == tuple(map(str, range(len(names)))) else names


def _check_features(
  name: str, features: Any
) -> tuple[int, Any, tuple[int, int, int] | None]:
  """Returns channels, the feature of the label, the shape of all images."""
  fields: dict[str, Any] = dict(features)
  image: Any = fields.get('image')
  label = next((fields[name] for name in LABELS if name in fields), None)
  is_image = isinstance(image, tfds.features.Image) or is_pixels(image)
  if not is_image or not isinstance(label, tfds.features.ClassLabel):
    raise InputError(
      f'{name!r} is not a set of labelled images: it needs the features'
      f" 'image' (Image, or a uint8 Tensor [H, W, C] with encoding 'bytes')"
      f" and 'label' (ClassLabel) and has {list(fields)}."
    )
  shape: Any = image.shape
  channels = shape[-1] or 3
  if channels not in (1, 3) or label.num_classes is None:
    raise InputError(
      f'{name!r} has {channels} channels and {label.num_classes} classes;'
      ' expected 1 or 3 channels and a known number of classes.'
    )
  return channels, label, None if None in shape else tuple(shape)


def _prepare_digits(data_dir: str | None) -> None:
  """Prepares `digits`, quietly, where that was not done before."""
  from resnet.data.sources import digits

  def builder() -> tfds.core.DatasetBuilder:
    return digits.Digits(data_dir=data_dir, file_format='array_record')

  if builder().info.splits:
    return
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder().download_and_prepare()
  except OSError as error:
    if builder().info.splits:
      return  # Another process was faster.
    raise InputError(
      f'digits cannot be written to {builder().data_dir}:'
      f' {error.strerror or error}.'
      ' Name a folder that can be: --config.data.data_dir=DIR'
    ) from None


def _folder_source(
  data_dir: str | None, split: str, split_flag: str | None
) -> Source:
  records = open_folder(data_dir, split, split_flag)
  return Source(
    name='folder',
    split=split,
    num_classes=len(records.class_names),
    channels=3,
    records=records,
    class_names=records.class_names,
  )


def _fake_source(split: str, image_size: int) -> Source:
  if split not in LENGTHS:
    raise InputError(
      f"'fake' has no split {split!r}. There are: {', '.join(LENGTHS)}"
    )
  records = FakeRecords(LENGTHS[split], list(LENGTHS).index(split), image_size)
  return Source(
    name='fake',
    split=split,
    num_classes=records.num_classes,
    channels=3,
    records=records,
    image_shape=(image_size, image_size, 3),
  )
