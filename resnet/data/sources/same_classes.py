"""Another set of images of the classes that a network was trained on."""

from resnet.data.sources.base import Source
from resnet.data.sources.registry import only_split, open_source
from resnet.errors import InputError


def open_same_classes(
  train: Source, name: str, split: str | None, *, data_dir: str | None
) -> Source:
  """Opens a set whose labels mean what those of `train` mean.

  ImageNet-V2 is such a set beside `imagenet2012`: TFDS reads its folders 0 to
  999 as labels, and gives both the names of labels.txt, the WordNet ids in
  order. (Folders of these names, sorted as text, would have other labels.)

  Args:
    train: what the network was trained on.
    name: of the set, as of `open_source`.
    split: of the set; None: the only one.
    data_dir: where the set lies.
  """
  split = split or only_split(name, data_dir)
  size = train.image_shape[0] if train.image_shape else None
  source = open_source(name, split, data_dir=data_dir, image_size=size)
  for what in ('num_classes', 'channels'):
    have, want = getattr(source, what), getattr(train, what)
    if have != want:
      raise InputError(
        f'{name}/{split} has {have:,} {what.removeprefix("num_")}, and'
        f' {train.name!r}, the training data, has {want:,}: expected the same.'
      )
  have, want = source.class_names, train.class_names
  if have and want and have != want:
    here, there = next(
      (a, b) for a, b in zip(have, want, strict=True) if a != b
    )
    raise InputError(
      f'{name}/{split} has a class {here!r} where {train.name!r}, the training'
      f' data, has {there!r}: expected the same classes in the same order.'
    )
  return source
