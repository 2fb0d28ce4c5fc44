"""TFDS builder of scikit-learn's handwritten digits, which need no download.

The 1,797 images are the test part of the UCI set "Optical recognition of
handwritten digits" (Alpaydin and Kaynak 1998): 8x8 pixels, 13 writers.
"""

import contextlib
import functools
import io
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from resnet.errors import InputError, reason_of

_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """8x8 grey images of ten digits: 1,437 for training and 360 for testing.

  The images are stably sorted by label. Every fifth one, beginning with the
  first, is a test image, so the test split has a fifth of each label's images,
  to within one image. Both splits contain images of the same writers. The
  pixels 0..16 are scaled to 0..255 and stored as PNG.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://archive.ics.uci.edu/dataset/80',
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # The images come with scikit-learn.
    from sklearn import datasets  # Here, because the import is slow.

    digits: Any = datasets.load_digits()
    order = np.argsort(digits.target, kind='stable')
    is_test = np.arange(len(order)) % _EVERY == 0
    return {
      'train': self._generate_examples(digits, order[~is_test]),
      'test': self._generate_examples(digits, order[is_test]),
    }

  def _generate_examples(self, digits, indices):
    for index in indices.tolist():
      pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
      png = cv2.imencode('.png', pixels)[1].tobytes()
      yield index, {'image': png, 'label': int(digits.target[index])}


def prepare(data_dir: str | None) -> None:
  """Prepares the set without output, unless it is prepared already."""
  create = functools.partial(
    Digits, data_dir=data_dir, file_format='array_record'
  )
  builder = create()
  if builder.info.splits:
    return
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError as error:
    if not create().info.splits:  # Another process may have been faster.
      raise InputError(
        f'digits cannot be written to {builder.data_dir}: {reason_of(error)}.'
        ' Choose another --config.data.data_dir=DIR'
      ) from None
