"""Hostile and damaged weight files of all formats."""

import io
import pathlib
import random
import struct
import tracemalloc
import zipfile

from flax import serialization
import numpy as np
import pytest
import safetensors.numpy

from resnet import weights
from resnet.errors import InputError

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def read_all(path):
  source = weights.open_stored(str(path))
  return {key: source.read(key) for key in source.tensors}


def in_pickle(opcodes):
  """Returns a file of torch.save whose pickle has these opcodes."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\2' + opcodes + b'.')
  return file.getvalue()


def in_header(text):
  return struct.pack('<Q', len(text)) + text


def in_npz(method, shape, num_bytes=4):
  """Returns an archive with an array of zeros that claims a shape."""
  head, file = io.BytesIO(), io.BytesIO()
  fields = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(head, fields)
  with zipfile.ZipFile(file, 'w', method) as archive:
    archive.writestr('x.npy', head.getvalue() + bytes(num_bytes))
  return file.getvalue()


def many_groups():
  buffer = io.BytesIO()
  with pytest.importorskip('h5py').File(buffer, 'w') as file:
    for i in range(17_000):
      file.create_group(f'{i}')
  return buffer.getvalue()


MANY = 1 << 20
VARIABLES = b'\x81\xa6params\x81\xa1x'  # {'params': {'x': ...}}
LIST = b'\xdd' + struct.pack('>I', MANY)
# An array of 64 MiB of zeros, which take few bytes.
LARGE, ZEROS = (1 << 24,), 64 << 20
# The cause that the error names, and a function for the contents of the file
# with its arguments.
HOSTILE = {
  'pickle of lists': ('opcodes', in_pickle, b']' * MANY),
  'pickle of tuples': ('opcodes', in_pickle, b')' + b'\x85' * (MANY - 999)),
  'pickle of memos': ('opcodes', in_pickle, b'}' + b'\x94' * (MANY - 999)),
  'msgpack of maps': ('not an array', bytes, VARIABLES + LIST + b'\x80' * MANY),
  'msgpack of other maps': (
    "no 'params'",
    bytes,
    b'\x81\xa1x' + LIST + b'\x80' * MANY,
  ),
  'msgpack of names': (
    'there twice',
    bytes,
    VARIABLES + b'\xdf' + LIST[1:] + b'\xa1a\x80' * MANY,
  ),
  'msgpack of shapes': (
    'damaged',
    bytes,
    VARIABLES + b'\xc9' + LIST[1:] + b'\1\x93' + LIST + b'\x90' * (MANY - 6),
  ),
  'header of lists': ('header', in_header, b'{"a":[' + b'[],' * MANY + b'0]}'),
  'index of lists': (
    'damaged',
    bytes,
    b'{"weight_map": [' + b'[],' * MANY + b'0]}',
  ),
  'npz, deflated': ('eight times', in_npz, zipfile.ZIP_DEFLATED, LARGE, ZEROS),
  'npz, bz2': ('not deflated', in_npz, zipfile.ZIP_BZIP2, LARGE, ZEROS),
  'npz, lzma': ('not deflated', in_npz, zipfile.ZIP_LZMA, LARGE, ZEROS),
  'npz, shape': ('has 4 bytes', in_npz, zipfile.ZIP_STORED, (10**6, 10**6)),
  'groups': ('more than a network', many_groups),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_files_take_little_memory(tmp_path, kind):
  cause, make, *args = HOSTILE[kind]
  path = tmp_path / 'weights.index.json'  # Other formats go by the contents.
  path.write_bytes(make(*args))
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match=cause) as info:
      read_all(path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert str(path) in str(info.value) and '\n' not in str(info.value)
  # Modules that are imported and the objects of a small file need a few MB.
  assert peak < 1.5 * path.stat().st_size + (32 << 20)


def test_checkpoints_of_deep_networks_are_read(tmp_path):
  path = tmp_path / 'weights'
  layers = {f'layer{i}': {'kernel': ARRAY[0]} for i in range(8000)}
  large = {'m': np.zeros(1 << 25, np.float32)}
  tree = {'opt_state': large, 'params': layers}
  path.write_bytes(serialization.msgpack_serialize(tree))
  read = read_all(path)
  assert len(read) == 8000
  np.testing.assert_array_equal(read['params/layer7999/kernel'], ARRAY[0])


def save(path, kind):
  state = {'params/x/kernel': ARRAY, 'batch_stats/x/mean': ARRAY[0]}
  if kind == 'safetensors':
    safetensors.numpy.save_file(state, path)
  elif kind == 'npz':
    with open(path, 'wb') as file:
      np.savez(file, **state)
  elif kind == 'msgpack':
    tree = {'params': {'x': {'kernel': ARRAY}}, 'step': 3}
    path.write_bytes(serialization.msgpack_serialize(tree))
  else:
    with pytest.importorskip('h5py').File(path, 'w') as file:
      file['x/x/kernel:0'] = ARRAY


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['safetensors', 'npz', 'msgpack', 'hdf5'])
def test_random_damage_is_refused_or_harmless(tmp_path, kind):
  path = pathlib.Path(tmp_path / 'weights')
  save(path, kind)
  data, messages = path.read_bytes(), []
  assert any(np.array_equal(x, ARRAY) for x in read_all(path).values())
  for seed in range(200):
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
      damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if seed % 4 == 0:
      del damaged[rng.randrange(len(data)) :]
    path.write_bytes(damaged)
    try:
      read = read_all(path)
      if kind == 'npz':  # It has checksums.
        assert any(np.array_equal(x, ARRAY) for x in read.values())
    except InputError as error:
      messages.append(str(error))
  assert len(messages) > 50 and not any('\n' in text for text in messages)
