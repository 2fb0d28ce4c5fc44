"""Writes features of images to a .npz (NumPy) or .parquet (Arrow) file."""

from collections.abc import Iterable
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resnet.errors import InputError, readable
from resnet.files import replacing, writing

# B file names and their features [B, ...].
Batch = tuple[list[str], np.ndarray]


def write_features(path: str, batches: Iterable[Batch]) -> None:
  """Writes features to a file, which appears only once it is complete.

  A .npz file has the arrays 'files' (text) and 'features', which are collected
  in memory first. A .parquet file has the columns 'file' and 'features' and one
  row group per batch. The features of an image are one list of float32 in
  row-major order; the metadata field 'shape' holds their shape.
  """
  if not path.endswith(('.npz', '.parquet')):
    raise InputError(f'{path} must end in .npz or .parquet.')
  write = _write_npz if path.endswith('.npz') else _write_parquet
  batches = iter(batches)
  with writing(path), replacing(path) as part:
    first = next(batches, None)
    if first is None:
      raise InputError(f'There are no features to write to {path}.')
    write(part, itertools.chain([first], batches))


def _write_npz(path: str, batches: Iterable[Batch]) -> None:
  names, features = zip(*batches, strict=True)
  files = [readable(name) for some in names for name in some]
  # NumPy would add .npz to a path, but not to an open file.
  with open(path, 'wb') as file:
    np.savez(file, files=np.array(files), features=np.concatenate(features))


def _write_parquet(path: str, batches: Iterable[Batch]) -> None:
  tables = map(_to_table, batches)
  first = next(tables)
  with pq.ParquetWriter(path, first.schema) as writer:
    for table in itertools.chain([first], tables):
      writer.write_table(table)


def _to_table(batch: Batch) -> pa.Table:
  names, features = batch
  flat = features.reshape(len(features), -1)
  column = pa.FixedSizeListArray.from_arrays(flat.ravel(), flat.shape[1])
  table = pa.table({'file': list(map(readable, names)), 'features': column})
  shape = ','.join(map(str, features.shape[1:]))
  return table.replace_schema_metadata({'shape': shape})
