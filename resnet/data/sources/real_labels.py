"""ImageNet-ReaL: all labels that people see in an image, instead of one.

Beyer et al. 2020, "Are we done with ImageNet?": for the 50,000 validation
images of ImageNet. In some images people saw none of the classes; these do not
count.
"""

from collections.abc import Sequence
import itertools
import json
import re
from typing import Any

import numpy as np

from resnet.data.sources import imagenet
from resnet.data.sources.base import Source
from resnet.errors import InputError

# The labels of each image; an image may have none.
Labels = list[tuple[int, ...]]

_FILE = re.compile(r'ILSVRC2012_val_(\d{8})\.')


def read(path: str) -> Labels:
  """Reads real.json: a list of labels of each file of the validation images."""
  try:
    with open(path, 'rb') as file:
      labels = json.load(file)
  except (OSError, ValueError) as error:
    raise InputError(f'--real_labels={path} cannot be read: {error}.') from None
  if not (
    isinstance(labels, list)
    and len(labels) == imagenet.NUM_VALIDATION
    and all(isinstance(entry, list) for entry in labels)
    and all(
      type(label) is int and 0 <= label < imagenet.NUM_CLASSES
      for label in itertools.chain(*labels)
    )
  ):
    raise InputError(
      f'--real_labels={path} is not a list of {imagenet.NUM_VALIDATION:,} lists'
      f' of labels, 0 to {imagenet.NUM_CLASSES - 1}, as real.json of'
      ' google-research/reassessed-imagenet is.'
    )
  return [tuple(entry) for entry in labels]


def by_file_name(source: Source, labels: Labels) -> Labels:
  """Returns the labels of each record, found by the number in its file name.

  The `source` holds validation images of ImageNet, or a part of them.
  """
  names = source.class_names
  if source.num_classes != imagenet.NUM_CLASSES or (
    names and names != imagenet.class_names()
  ):
    raise InputError(
      '--real_labels is for the classes of ImageNet, in the order of their'
      f' WordNet ids; {source.name!r} has {source.num_classes:,} classes:'
      f' {", ".join(names[:3] if names else ("without names",))} ...'
    )
  found = []
  for index in range(len(source)):
    key = source.key(index, source.read([index])[0])
    match = _FILE.search(key)
    number = int(match[1]) if match else 0
    if not 0 < number <= len(labels):
      raise InputError(
        f'--real_labels: {key} is not one of the files'
        f' ILSVRC2012_val_00000001.JPEG to ..._{len(labels):08}.JPEG.'
      )
    found.append(labels[number - 1])
  return found


def score(predictions: np.ndarray, labels: Sequence[Any]) -> dict[str, Any]:
  """Returns the share of images whose prediction is among their labels.

  Args:
    predictions: class of each image; -1 where it was left out.
    labels: of each image.

  Returns:
    'top1'; 'num_images' that have labels; 'num_unlabelled', which do not count.
  """
  pairs = list(zip(predictions.tolist(), labels, strict=True))
  is_right = [p in seen for p, seen in pairs if seen and p >= 0]
  if not is_right:
    raise InputError('No image has a real label: there is nothing to count.')
  return {
    'top1': sum(is_right) / len(is_right),
    'num_images': len(is_right),
    'num_unlabelled': sum(not seen and p >= 0 for p, seen in pairs),
  }
