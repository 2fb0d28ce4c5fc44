"""Files of torch.save are read exactly, and nothing in them runs."""

import io
import os
import pathlib
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from resnet import weights
from resnet.errors import InputError

NUMBERS = np.arange(6, dtype=np.float32)
# What a file of `mapping(w=tensor())` holds.
STATE = {'w': NUMBERS.reshape(2, 3)}


# Pickles put together from their opcodes.


def literal(value):
  """The opcodes that push a value of plain data."""
  return pickle.dumps(value, 2)[2:-1]


def call(name, *args):
  """The opcodes that call a function with arguments, given as opcodes."""
  module, _, function = name.rpartition('.')
  return f'c{module}\n{function}\n('.encode() + b''.join(args) + b'tR'


def storage(key='0', count=6, *view, kind='torch\nFloatStorage'):
  """The opcodes that name a storage."""
  start = literal('storage') + f'c{kind}\n'.encode()
  rest = b''.join(map(literal, (key, 'cpu', count, *view)))
  return b'(' + start + rest + b'tQ'


def tensor(first=0, shape=(2, 3), strides=(3, 1), where=None, extra=()):
  """The opcodes of a tensor, as torch.save writes them."""
  layout = map(literal, (first, shape, strides, False))
  hooks = call('collections.OrderedDict')
  name = 'torch._utils._rebuild_tensor_v2'
  return call(name, where or storage(), *layout, hooks, *extra)


def mapping(**items):
  """The opcodes of a dict of opcodes."""
  pairs = (literal(key) + value for key, value in items.items())
  return b'}(' + b''.join(pairs) + b'u'


def program(opcodes):
  return b'\x80\x02' + opcodes + b'.'


def write_zip(path, opcodes, storages=(('0', NUMBERS),), members=()):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program(opcodes))
    archive.writestr('archive/byteorder', b'little')
    for key, array in storages:
      archive.writestr(f'archive/data/{key}', array.tobytes())
    for member in members:
      archive.writestr(*member)
  return path


def write_legacy(path, opcodes, storages=(('0', NUMBERS),), system=None):
  values = [0x1950A86A20F9469CFC6C, 1001, system or {'little_endian': True}]
  parts = [pickle.dumps(value, 2) for value in values]
  parts += [program(opcodes), pickle.dumps([key for key, _ in storages], 2)]
  for _, array in storages:
    parts += [struct.pack('<q', array.size), array.tobytes()]
  path.write_bytes(b''.join(parts))
  return path


@pytest.fixture(params=[write_zip, write_legacy])
def write(request, tmp_path):
  """(opcodes, ...) -> the path of a file in one of the two formats."""
  path = tmp_path / 'weights.pth'
  return lambda *args, **kwargs: request.param(path, *args, **kwargs)


def load(source):
  found = weights.open_stored(str(source))
  return {key: found.read(key) for key in found.tensors}


def assert_equal(actual, expected):
  assert actual.keys() == expected.keys()
  for key, array in expected.items():
    assert actual[key].dtype == array.dtype, key
    assert actual[key].shape == array.shape, key
    assert actual[key].tobytes() == array.tobytes(), key


def assert_refused(source, message):
  with pytest.raises(InputError, match=message) as error:
    load(source)
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 600


# What torch.save writes.


@pytest.mark.parametrize('is_zip', [True, False])
def test_tensors_equal_those_of_torch(tmp_path, is_zip):
  torch = pytest.importorskip('torch')
  base = torch.randn(5, 4, 3)
  state = {
    'float32': base,
    'float16': base.half(),
    'bfloat16': base.bfloat16(),
    'float64': base.double(),
    'int64': torch.tensor(7),
    'bool': base > 0,
    'parameter': torch.nn.Parameter(base[0].clone()),
    'view': base[1:3, 2],
    'transposed': base.permute(2, 0, 1),
    'step': base[::2, 1:],
    'row': base.permute(2, 0, 1)[:1],
    'empty': torch.zeros(0, 3),
  }
  path = str(tmp_path / 'weights.pth')
  torch.save(state, path, _use_new_zipfile_serialization=is_zip)
  found = weights.open_stored(path)
  assert found.tensors['bfloat16'] == ((5, 4, 3), 'bfloat16')
  actual = {key: found.read(key) for key in state}
  for key, expected in state.items():
    array = actual[key].astype(np.float64)
    np.testing.assert_array_equal(array, expected.detach().double().numpy())
  if is_zip:
    for protocol in (3, 4, 5):
      torch.save(state, path, pickle_protocol=protocol)
      assert_equal(load(path), actual)


@pytest.mark.parametrize('is_zip', [True, False])
def test_a_module_s_state_dict_is_read(tmp_path, is_zip):
  torch = pytest.importorskip('torch')
  state = torch.nn.BatchNorm2d(3).state_dict()  # Has an attribute `_metadata`.
  path = str(tmp_path / 'weights.bin')
  optimizer = {'state': {0: {'momentum_buffer': state['bias']}}}
  saved = {'epoch': 3, 'best': state['bias'][0], 'model': state}
  saved['optimizer'] = {**optimizer, 'param_groups': [{'lr': 0.1, 'b': None}]}
  torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
  assert weights.open_stored(path).name == f'{path}#model'
  assert_equal(load(path), {k: v.numpy() for k, v in state.items()})


def test_a_real_file_equals_its_copy(real_data):
  folder = real_data / 'cifar-resnets'
  copy = load(folder / 'resnet20.safetensors')
  assert_equal(load(folder / 'resnet20-12fca82f.th'), copy)


# Which state dict.


def test_a_key_chooses_one_of_several_state_dicts(write, tmp_path):
  inner = mapping(b=tensor(3, (3,), (1,)))
  path = write(
    mapping(
      epoch=literal(3),
      names=literal(['a', None]),
      model=mapping(a=tensor()),
      more=mapping(ema=inner, decay=literal(0.9)),
    )
  )
  assert_refused(path, f"several .*'{path}#model' or '{path}#more/ema'")
  assert_refused(f'{path}#mode', "no state dict 'mode': type")
  assert_equal(load(f'{path}#model'), {'a': NUMBERS.reshape(2, 3)})
  assert_equal(load(f'{path}#more/ema'), {'b': NUMBERS[3:]})
  assert_refused(f'{path}#raw', "no state dict 'raw': type")
  folder = tmp_path / 'net'
  folder.mkdir()
  os.rename(path, folder / 'pytorch_model.bin')
  assert_refused(folder, f"several .*'{folder}#model' or")
  assert_equal(load(f'{folder}#model'), {'a': NUMBERS.reshape(2, 3)})


def test_names_of_files_may_have_a_hash_sign(tmp_path):
  path = write_zip(tmp_path / 'a#model', mapping(w=tensor()))
  for source in (path, f'{path}#'):
    assert_equal(load(source), STATE)
  target = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file({'w': NUMBERS}, target)
  assert_refused(f'{target}#model', 'leave #model out')


def test_files_without_tensors_are_refused(write):
  path = write(mapping(epoch=literal(3)), storages=())
  assert_refused(path, 'holds no state dict')
  assert_refused(write(tensor()), 'holds no state dict')


# Hostile files.


@pytest.mark.parametrize(
  'name',
  [
    'os.system',
    'posix.system',
    'builtins.eval',
    '__builtin__.getattr',
    'numpy.load',
    'argparse.Namespace',
    'torch.load',
    'collections.OrderedDict.fromkeys',
  ],
)
def test_other_names_are_refused(write, tmp_path, name):
  canary = tmp_path / 'canary'
  for opcodes in (
    call(name, literal(f'touch {canary}')),
    mapping(w=tensor(), x=call(name, literal(f'open({str(canary)!r}, "w")'))),
    b'\x8c' + bytes([len(name)]) + name.encode() + literal('') + b'\x93',
  ):
    assert_refused(write(opcodes), f"it needs '{name}")
  assert not canary.exists()


@pytest.mark.parametrize(
  ('first', 'shape', 'strides'),
  [
    (-1, (2,), (1,)),
    (5, (2,), (1,)),
    (0, (7,), (1,)),
    (0, (2, 3), (4, 1)),
    (0, (2, 3), (0, 1)),
    (0, (4, 3), (1, 1)),
    (3, (2,), (-1,)),
    (0, (-2,), (1,)),
    (0, (2, 3), (1,)),
    (0, (10**12, 10**12), (10**12, 1)),
    (0, (2**70,), (1,)),
    (0, [2, 3], (3, 1)),
    (0, 'ab', (3, 1)),
    (0, (2,), None),
    (0, (True,), (1,)),
    (0, (2.0,), (1,)),
    (None, (2,), (1,)),
    (0, (1,) * 99, (1,) * 99),
  ],
)
def test_tensors_stay_in_their_storage(write, first, shape, strides):
  assert_refused(write(mapping(w=tensor(first, shape, strides))), 'weights.pth')


@pytest.mark.parametrize(
  'opcodes',
  [
    tensor(where=storage(count=10**12)),
    tensor(where=storage(count=-6)),
    tensor(where=storage(count=5)),
    tensor(where=storage(key='1')),
    tensor(where=storage(key='../data.pkl')),
    tensor(where=storage(key=3)),
    tensor(where=storage(kind='torch\nSize')),
    tensor(where=storage('0', 6, ('0', 3, 6))),
    tensor(where=storage('0', 6, 'abc')),
    tensor(where=storage()) + b'0' + tensor(where=storage(count=7)),
    tensor(where=literal('storage')),
    tensor(where=literal(('storage', 'torch.FloatStorage', '0', 'cpu', 6))),
    tensor(extra=[literal({'neg': True})]),
    call('torch._utils._rebuild_tensor_v2'),
    call('torch._utils._rebuild_tensor', storage(), literal(0)),
    call('torch._utils._rebuild_parameter', literal(3), literal(3), literal(3)),
    call('collections.OrderedDict', literal(3)),
    call('collections.OrderedDict', literal([3])),
    call('collections.OrderedDict', literal([([], 3)])),
    call('torch.Size', literal(3)),
    literal('posix') + literal(('true',)) + b'R',
    b'}((tt' + literal(3) + b'u',  # A tuple as a key.
    b'}(' + literal(3) + b'u',  # A key without a value.
    b'K\x01K\x02a',  # Appends to a number.
    b'r\xff\xff\xff\x7f',  # Stores nothing under a large number.
    b'h\x07',  # Reads what was not stored.
    b't',  # Has no mark.
    b'R',
    b'',
    b'\x82\x01',  # The registry of extensions.
    b'Pabc\n',
    b'S"\\q"\n',
    b'\x8e' + b'\xff' * 8,  # 2**64 bytes.
    b'(' * 999,
    b'\x80\xff\xff',
  ],
)
def test_hostile_pickles_are_refused(write, opcodes):
  assert_refused(write(mapping(w=opcodes)), 'weights.pth')


@pytest.mark.parametrize(
  ('opcodes', 'message'),
  [
    (b'}(' + literal(2**61 - 1) + literal(3) + b'u', 'a long int is a key'),
    (b'K\x01K\x02a', 'the opcode APPEND is not supported'),
    (b'e', 'the stack of its pickle is too short'),
    (storage('0', 6, *[None] * 9), 'too many arguments'),
    (tensor(extra=[literal(None)] * 9), 'too many arguments'),
  ],
)
def test_errors_name_the_problem(write, opcodes, message):
  assert_refused(write(opcodes + mapping(w=tensor())), message)


def test_lists_are_not_multiplied(write):
  pair = literal('w')[:-2] + tensor(0, (6,), (1,))
  dicts = {str(i): b'h\x08h\x09R' for i in range(2000)}
  dicts['0'] = b'ccollections\nOrderedDict\nq\x08(](](' + pair + b'eetq\x09R'
  # The first call empties the list, so there is only one state dict.
  assert_equal(load(write(mapping(**dicts))), {'w': NUMBERS})


def test_state_dicts_under_huge_keys_are_left_out(write):
  inner = mapping(w=tensor())
  path = write(mapping(**{'k' * 256: inner}))
  assert_refused(path, 'holds no state dict')
  assert_equal(load(write(mapping(**{'k' * 255: inner}))), STATE)


def test_attributes_are_never_set(write):
  path = write(mapping(w=tensor() + literal({'shape': (99,)}) + b'b'))
  assert_equal(load(path), STATE)


def test_views_and_python_2_s_dicts_are_read(write):
  view = storage('0', 6, ('1', 2, 4))
  pair = literal('w')[:-2] + tensor(1, (3,), (1,), where=view)
  path = write(call('collections.OrderedDict', b'](](' + pair + b'ee'))
  assert_equal(load(path), {'w': NUMBERS[3:]})


def test_deep_and_repeated_objects_take_no_time(write):
  deep = b'(' * 10**5 + b't' * 10**5
  path = write(mapping(x=deep, w=tensor()))
  assert_equal(load(path), STATE)
  # Each dict contains the one before a hundred times.
  dicts = {'0': mapping(w=tensor()) + b'q\x01'}
  for i in range(1, 9):
    entries = b''.join(literal(str(j)) + b'h%c' % i for j in range(100))
    dicts[str(i)] = b'}q%c(' % (i + 1) + entries + b'u'
  assert_equal(load(write(mapping(**dicts))), STATE)


@pytest.mark.parametrize(
  ('member', 'message'),
  [
    (('archive/../x', b''), 'not in the folder'),
    (('../x', b''), 'not in the folder'),
    (('/etc/x', b''), 'not in the folder'),
    (('archive/a\\..\\x', b''), 'not in the folder'),
    (('other/x', b''), 'not in the folder'),
    (('archive/x', b'0' * 10**6, zipfile.ZIP_DEFLATED), 'is compressed'),
    (('archive/x', b'', zipfile.ZIP_LZMA), 'is compressed'),
  ],
)
def test_hostile_members_of_a_zip_file_are_refused(tmp_path, member, message):
  path = tmp_path / 'weights.pth'
  write_zip(path, mapping(w=tensor()), members=[member])
  assert_refused(path, message)


@pytest.mark.filterwarnings('ignore:Duplicate name:UserWarning')
def test_other_zip_files_are_refused(tmp_path):
  path = tmp_path / 'weights.pth'
  opcodes = mapping(w=tensor())
  write_zip(path, opcodes, members=[('archive/data/0', b'')])
  assert_refused(path, 'the same name')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/x', b'')
  assert_refused(path, 'another kind of zip file')
  # A directory of 5 MB.
  end = struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 1, 1, 5 << 20, 2, 0)
  path.write_bytes(b'PK' + bytes(5 << 20) + end)
  assert_refused(path, 'exceeds')
  write_zip(path, b'X' + struct.pack('<I', 1 << 22) + bytes(1 << 22))
  assert_refused(path, 'exceeds')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/byteorder', b'big')
    archive.writestr('archive/data.pkl', program(opcodes))
  assert_refused(path, 'little-endian')


def test_damaged_numbers_are_refused(tmp_path):
  path = tmp_path / 'weights.pth'
  rows = mapping(a=tensor(0, (3,), (1,)), b=tensor(3, (3,), (1,)))
  write_zip(path, rows)
  good = path.read_bytes()
  assert_equal(load(path), {'a': NUMBERS[:3], 'b': NUMBERS[3:]})
  start = good.index(NUMBERS.tobytes())
  damaged = bytearray(good)
  damaged[start + 9] ^= 1
  path.write_bytes(damaged)
  assert_refused(path, 'the checksum of a storage is wrong')
  # With set_crc32_options(False), PyTorch writes zeros as checksums.
  with zipfile.ZipFile(io.BytesIO(good)) as archive:
    for info in archive.infolist():
      good = good.replace(info.CRC.to_bytes(4, 'little'), bytes(4))
  path.write_bytes(good)
  assert_equal(load(path), {'a': NUMBERS[:3], 'b': NUMBERS[3:]})


def test_errors_of_reading_are_reported():
  path = '/proc/self/mem'  # It can be opened, but not read at byte 0.
  if not os.path.exists(path):
    pytest.skip(f'needs {path}')
  assert_refused(path, f'{path} cannot be read: ')


def test_other_pickles_are_refused(tmp_path):
  path = tmp_path / 'weights.pth'
  opcodes = mapping(w=tensor())
  path.write_bytes(pickle.dumps({'a': 3}))
  assert_refused(path, 'another kind of pickle')
  write_legacy(path, opcodes, system={'little_endian': False})
  assert_refused(path, 'little-endian')
  write_legacy(path, opcodes, storages=[('0', NUMBERS), ('0', NUMBERS)])
  assert_refused(path, 'does not match')
  write_legacy(path, opcodes, storages=[('0', NUMBERS[:5])])
  assert_refused(path, 'does not match')
  write_legacy(path, opcodes, storages=[])
  assert_refused(path, "storage '0' is missing")


def test_truncated_files_are_refused(write):
  path = write(mapping(w=tensor()))
  data = path.read_bytes()
  for size in range(len(data)):
    path.write_bytes(data[:size])
    assert_refused(path, 'weights.pth')


@pytest.mark.slow
def test_random_damage_is_refused_or_harmless(write, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  command = call('os.system', literal('touch canary'))
  files = []
  for value in (literal([1, 'x', 2.5]), command):
    path = write(mapping(w=tensor(), x=value))
    files.append(path.read_bytes())
  messages = []
  for seed in range(1000):
    rng = random.Random(seed)
    data = files[seed % 2]  # One calls a command, unless the call is damaged.
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
      damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if seed % 4 == 0:
      del damaged[rng.randrange(len(data)) :]
    pathlib.Path(path).write_bytes(damaged)
    try:
      read = load(path)
      if data.startswith(b'PK'):  # A zip file has checksums of all it holds.
        assert_equal(read, STATE)
    except InputError as error:
      messages.append(str(error))
  assert len(messages) > 500 and not any('\n' in text for text in messages)
  assert os.listdir(tmp_path) == ['weights.pth']
