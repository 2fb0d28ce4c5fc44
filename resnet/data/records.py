"""Records of a prepared TFDS set, read with little work in Python."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.proto import tf_example_pb2

# Fields by which a person finds a record.
_NAMES = ('file_name', 'id')


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
  """Random access to 'image', 'label', and 'file_name' or 'id' of a split.

  TFDS's own reading takes three times as long for a photograph, because it
  makes an array of every field.

  Attributes:
    serialized: a TFDS data source of serialized tf.train.Example.
    shape: of images that are stored as pixels; None: they are files.
  """

  serialized: Any
  shape: tuple[int, int, int] | None

  def __len__(self) -> int:
    return len(self.serialized)

  def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]:
    return [self._parse(data) for data in self.serialized.__getitems__(keys)]

  def _parse(self, data: bytes) -> dict[str, Any]:
    fields = tf_example_pb2.Example.FromString(data).features.feature
    image: Any = fields['image'].bytes_list.value[0]
    if self.shape is not None:
      image = np.frombuffer(image, np.uint8).reshape(self.shape)
    record = {'image': image, 'label': fields['label'].int64_list.value[0]}
    for name in _NAMES:
      if name in fields and fields[name].bytes_list.value:
        record[name] = fields[name].bytes_list.value[0]
    return record


def open_records(builder: Any, split: str) -> Any:
  """Returns the records of a split; images are undecoded.

  Raises:
    NotImplementedError: the set is not prepared for random access.
  """
  image = builder.info.features['image']
  if isinstance(image, tfds.features.Image):
    shape = None
  elif is_pixels(image):
    shape = tuple(image.shape)
  else:
    raise TypeError(f'{image} holds no images')
  serialized = builder.as_data_source(
    split=split, deserialize_method=DeserializeMethod.RAW_BYTES
  )
  return TfdsRecords(serialized, shape)


def is_pixels(feature: Any) -> bool:
  """Whether a TFDS feature is uint8 [H, W, C], stored as bytes."""
  return (
    type(feature) is tfds.features.Tensor
    and feature.np_dtype == np.uint8
    and len(feature.shape) == 3
    and None not in feature.shape
    and feature.to_json_content().encoding == 'bytes'
  )
