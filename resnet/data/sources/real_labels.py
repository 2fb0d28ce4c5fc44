"""ImageNet-ReaL: all correct labels of each image, instead of one.

Beyer et al. 2020, "Are we done with ImageNet?", for the 50,000 validation
images of ImageNet. Images that show none of the classes have no label and are
not counted.
"""

from collections.abc import Sequence
import json
import re
from typing import Any

import numpy as np

from resnet.data.sources import imagenet
from resnet.data.sources.base import Source
from resnet.errors import InputError
from resnet.files import reading

# The labels of each image; an empty tuple if it has none.
Labels = list[tuple[int, ...]]

_FILE = re.compile(r'ILSVRC2012_val_(\d{8})\.')


def read(path: str) -> Labels:
  """Reads real.json, which lists the labels of each validation image."""
  failure = f'--real_labels={path} cannot be read'
  with reading(failure), open(path, 'rb') as file:
    labels = json.load(file)
  is_valid = isinstance(labels, list) and len(labels) == imagenet.NUM_VALIDATION
  if not is_valid or not all(
    isinstance(entry, list)
    and all(type(x) is int and 0 <= x < imagenet.NUM_CLASSES for x in entry)
    for entry in labels
  ):
    raise InputError(
      f'--real_labels={path} is not a list of {imagenet.NUM_VALIDATION:,} lists'
      f' of labels, 0 to {imagenet.NUM_CLASSES - 1}: use real.json of'
      ' google-research/reassessed-imagenet.'
    )
  return [tuple(entry) for entry in labels]


def by_file_name(source: Source, labels: Labels) -> Labels:
  """Returns the labels of each record, by the number in its file name.

  The `source` holds all or some of the validation images of ImageNet.
  """
  names = source.class_names
  if source.num_classes != imagenet.NUM_CLASSES or (
    names and names != imagenet.class_names()
  ):
    raise InputError(
      '--real_labels needs the classes of ImageNet in the order of their'
      f' WordNet ids, but {source.name!r} has {source.num_classes:,} classes:'
      f' {", ".join(names[:3] if names else ("without names",))} ...'
    )
  found = []
  for index in range(len(source)):
    key = source.key(index, source.records[index])
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

  The prediction is -1 if the image was left out.

  Returns:
    'top1'; 'num_images', the number of images with labels; 'num_unlabelled',
    the number of images without labels, which 'top1' ignores.
  """
  pairs = list(zip(predictions.tolist(), labels, strict=True))
  is_right = [p in seen for p, seen in pairs if seen and p >= 0]
  if not is_right:
    raise InputError('No image has a real label, so there is no accuracy.')
  return {
    'top1': sum(is_right) / len(is_right),
    'num_images': len(is_right),
    'num_unlabelled': sum(not seen and p >= 0 for p, seen in pairs),
  }
