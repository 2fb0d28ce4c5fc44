"""Sources and encoded images that need no files."""

import io

import numpy as np
from PIL import Image

from resnet.data.host.decode import decode_record
from resnet.data.sources.base import Source


class Records:
  """Records in memory; notes which ones are read."""

  def __init__(self, records):
    self._records = records
    self.keys_read = []

  def __len__(self):
    return len(self._records)

  def __getitem__(self, key):
    self.keys_read.append(key)
    return self._records[key]


def make_source(
  records, *, num_classes=10, channels=1, name='made', class_names=None
):
  return Source(
    name=name,
    split='train',
    num_classes=num_classes,
    channels=channels,
    records=Records(records),
    class_names=class_names,
  )


def contents(source):
  """Returns pixels and label of each record, decoded and sorted."""
  records = enumerate(source.read(range(len(source))))
  return sorted(
    (decode_record(source, index, record).tobytes(), int(record['label']))
    for index, record in records
  )


def smooth_image(height, width):
  """Returns colours that change slowly, as JPEG likes them."""
  y, x = np.mgrid[:height, :width]
  waves = [100 * np.sin(y / 9 + k) + 20 * np.cos(x / 7 - k) for k in range(3)]
  return (127 + np.stack(waves, -1)).astype(np.uint8)


def encode(image, file_format, mode=None, **options):
  """Returns the bytes that Pillow writes, after conversion to `mode`."""
  picture = Image.fromarray(image)
  buffer = io.BytesIO()
  picture.convert(mode or picture.mode).save(buffer, file_format, **options)
  return buffer.getvalue()
