"""Features of images in a file: .npz (NumPy) or .parquet (Arrow)."""

import os
import tempfile
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resnet.errors import InputError, readable

SUFFIXES = ('.npz', '.parquet')


class FeaturesFile:
  """Writes rows of (file name, features); the file appears when all are there.

  .npz has the arrays 'files' (text) and 'features', and holds all of them in
  memory until the end. .parquet has the columns 'file' and 'features', a row
  group a batch; the features of an image are one list of float32 in row-major
  order, and their shape is the metadatum 'shape'.
  """

  def __init__(self, path: str):
    """Writes nothing yet.

    Raises:
      InputError: the name has another ending, or no such folder is there.
    """
    if not path.endswith(SUFFIXES):
      raise InputError(f'{path} must end in {" or ".join(SUFFIXES)}.')
    self._path = path
    folder = os.path.dirname(os.path.abspath(path))
    try:
      # Beside the target: a rename must not cross file systems.
      self._scratch = tempfile.TemporaryDirectory(
        dir=folder, prefix=f'.{os.path.basename(path)}.'
      )
    except OSError as error:
      raise InputError(f'{path} cannot be written: {error.strerror}.') from None
    self._part = os.path.join(self._scratch.name, os.path.basename(path))
    self._rows: list[tuple[list[str], np.ndarray]] = []
    self._parquet: Any = None

  def __enter__(self) -> 'FeaturesFile':
    return self

  def write(self, files: list[str], features: np.ndarray) -> None:
    """Adds features [B, ...] of B files."""
    files = list(map(readable, files))
    if self._path.endswith('.npz'):
      self._rows.append((files, features))
      return
    flat = features.reshape(len(features), -1)
    schema = pa.schema(
      [
        ('file', pa.string()),
        ('features', pa.list_(pa.float32(), flat.shape[1])),
      ],
      metadata={'shape': ','.join(map(str, features.shape[1:]))},
    )
    if self._parquet is None:
      self._parquet = pq.ParquetWriter(self._part, schema)
    column = pa.FixedSizeListArray.from_arrays(
      pa.array(flat.ravel()), flat.shape[1]
    )
    self._parquet.write_table(pa.table([pa.array(files), column], schema))

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._parquet is not None:
      self._parquet.close()
    if kind is None and self._rows:
      files = [name for names, _ in self._rows for name in names]
      features = np.concatenate([rows for _, rows in self._rows])
      np.savez(self._part, files=np.array(files), features=features)
    if kind is None and os.path.exists(self._part):
      os.replace(self._part, self._path)
    self._scratch.cleanup()
