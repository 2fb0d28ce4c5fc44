"""Runs the pickles of torch.save as data; no code in them can run.

A pickle is a program for a stack machine. `Machine` executes the few opcodes
that tensors and plain data need. It imports nothing, calls nothing and sets no
attributes: a name in a pickle only selects one of the cases of `_call`.
"""

import dataclasses
import math
import pickletools
import re
from typing import Any, BinaryIO

import jax.numpy as jnp

# What to do with a file that is refused.
ONLY = 'the weights alone: torch.save(model.state_dict(), FILE)'
_DTYPES = {
  'torch.FloatStorage': 'float32',
  'torch.HalfStorage': 'float16',
  'torch.BFloat16Storage': 'bfloat16',
  'torch.DoubleStorage': 'float64',
  'torch.LongStorage': 'int64',
  'torch.IntStorage': 'int32',
  'torch.ShortStorage': 'int16',
  'torch.CharStorage': 'int8',
  'torch.ByteStorage': 'uint8',
  'torch.BoolStorage': 'bool',
}
# An opcode, one byte, can cost 100 bytes of memory. A checkpoint of ResNet-152
# with AdamW and moving averages has 106,321 of them.
_MAX_OPCODES = 1 << 18
_GLOBALS = {
  'collections.OrderedDict',
  'torch.Size',
  'torch._utils._rebuild_parameter',
  'torch._utils._rebuild_tensor',
  'torch._utils._rebuild_tensor_v2',
  *_DTYPES,
}
_VALUES = {'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': bool}
_VALUES |= {'EMPTY_TUPLE': tuple, 'EMPTY_LIST': list, 'EMPTY_DICT': dict}
_LITERAL = re.compile(
  r'(SHORT_)?BIN(INT[12]?|FLOAT|STRING|UNICODE8?|BYTES8?)|LONG[14]'
)
# How many items an opcode takes from the stack; None is all above the mark.
_TAKES = {'TUPLE': None, 'APPENDS': None, 'SETITEMS': None, 'TUPLE1': 1}
_TAKES |= {'TUPLE2': 2, 'TUPLE3': 3, 'APPEND': 1, 'SETITEM': 2, 'REDUCE': 2}
_TAKES |= {'STACK_GLOBAL': 2, 'BINPERSID': 1, 'BUILD': 1}


@dataclasses.dataclass(frozen=True)
class _Global:
  name: str


@dataclasses.dataclass(slots=True)
class Storage:
  """`count` numbers in the file, from byte `start`."""

  dtype: str
  count: int
  start: int = -1
  crc: int = 0  # Their CRC-32; 0 if unknown or already checked.

  @property
  def num_bytes(self) -> int:
    return self.count * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
  """A tensor, or a view of a storage, that is not yet read.

  Its positions and strides are in numbers, not bytes.
  """

  storage: Storage
  first: int
  span: int  # Numbers from the first to the last element.
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * jnp.dtype(self.storage.dtype).itemsize


class Machine:
  """Runs pickles; collects the storages that they mention, by key."""

  def __init__(self):
    self.storages: dict[str, Storage] = {}

  def run(self, file: BinaryIO) -> Any:
    """Returns the value that a pickle describes, with `Tensor`s in it."""
    stack, marks, memo = [], [], {}
    for number, (opcode, arg, _) in enumerate(pickletools.genops(file)):
      if number == _MAX_OPCODES:
        raise ValueError(f'its pickle has too many opcodes: save {ONLY}')
      items = []
      if opcode.name in _TAKES:
        count = _TAKES[opcode.name]
        start = marks.pop() if count is None else len(stack) - count
        if not 0 <= start <= len(stack):
          raise ValueError('the stack of its pickle is too short')
        items = stack[start:]
        del stack[start:]
      match opcode.name:
        case 'PROTO' | 'FRAME' | 'BUILD':
          pass  # BUILD sets attributes, such as a state dict's `_metadata`.
        case 'STOP':
          return stack.pop()
        case 'MARK':
          marks.append(len(stack))
        case 'BINPUT' | 'LONG_BINPUT':
          memo[arg] = stack[-1]
        case 'MEMOIZE':
          memo[len(memo)] = stack[-1]
        case 'BINGET' | 'LONG_BINGET':
          stack.append(memo[arg])
        case 'TUPLE' | 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
          stack.append(tuple(items))
        case 'APPEND' | 'APPENDS' if isinstance(stack[-1], list):
          stack[-1].extend(items)
        case 'SETITEM' | 'SETITEMS' if isinstance(stack[-1], dict):
          _update(stack[-1], items)
        case 'GLOBAL':
          stack.append(_find(str(arg).replace(' ', '.', 1)))
        case 'STACK_GLOBAL':
          stack.append(_find('.'.join(items)))
        case 'BINPERSID' | 'REDUCE' if len(items[-1]) > 9:
          # Matching patterns copies the arguments, each time they are used.
          raise ValueError('its pickle calls with too many arguments')
        case 'BINPERSID':
          stack.append(self._storage(items[0]))
        case 'REDUCE':
          stack.append(_call(*items))
        case name if _LITERAL.fullmatch(name):
          stack.append(arg)
        case name if name in _VALUES:
          stack.append(_VALUES[name]())
        case name:
          raise ValueError(f'the opcode {name} is not supported here')
    raise ValueError('its pickle has no end')

  def _storage(self, name: Any) -> Tensor:
    match name:
      case 'storage', _Global(kind), str(key), _, count, *rest if (
        kind in _DTYPES
      ):
        storage = Storage(_DTYPES[kind], *_counts(count))
        if self.storages.setdefault(key, storage) != storage:
          raise ValueError(f'storage {key!r} has two sizes or types')
        first = 0
        # In old files, a storage can be a part of another one.
        if rest and rest[0] is not None:
          _, *part = rest[0]
          first, count = _counts(*part)
        if first + count > storage.count:
          raise ValueError(f'a view reaches past storage {key!r}')
        return Tensor(self.storages[key], first, count, (count,), (1,))
    raise ValueError('a storage is not described as by torch.save')


def _find(name: str) -> _Global:
  if name not in _GLOBALS:
    raise ValueError(
      f'it needs {name!r:.80}, but only tensors and plain data are read: save'
      f' {ONLY}'
    )
  return _Global(name)


def _call(function: Any, args: Any) -> Any:
  match function, args:
    case _Global('collections.OrderedDict'), ():
      return {}
    case _Global('collections.OrderedDict'), (list(pairs),):  # From Python 2.
      result = {}
      for key, value in pairs:
        _update(result, [key, value])
      pairs.clear()  # Further calls with this list would multiply it.
      return result
    case _Global('torch.Size'), (tuple(shape),):
      return shape
    case _Global('torch._utils._rebuild_parameter'), (Tensor() as tensor, _, _):
      return tensor
    case _Global('torch._utils._rebuild_tensor'), (Tensor() as view, *layout):
      return _tensor(view, *layout)
    case (
      _Global('torch._utils._rebuild_tensor_v2'),
      (Tensor() as view, first, shape, strides, _, _, *metadata),
    ) if not any(metadata):  # It marks complex conjugates and negatives.
      return _tensor(view, first, shape, strides)
  raise ValueError('its pickle calls a function with the wrong arguments')


def _update(target: dict[Any, Any], items: list[Any]) -> None:
  for key, value in zip(items[::2], items[1::2], strict=True):
    # The time to hash a tuple is exponential in how deeply it is nested, and
    # all multiples of 2**61 - 1 have the same hash.
    is_long = isinstance(key, int) and key.bit_length() > 60
    if is_long or not isinstance(key, str | bytes | int | float | None):
      raise ValueError(f'a {"long " * is_long}{type(key).__name__} is a key')
    target[key] = value


def _counts(*values: Any) -> tuple[int, ...]:
  for value in values:
    if type(value) is not int or not 0 <= value < 1 << 63:
      raise ValueError('a size, position or stride is not valid')
  return values


def _tensor(view: Tensor, first: Any, shape: Any, strides: Any) -> Tensor:
  if not isinstance(shape, tuple) or len(shape) > 32:
    raise ValueError('the shape of a tensor is not valid')
  # The stride of a dim of size 1 is never used, and torch.save may store any
  # value.
  pairs = list(zip(_counts(*shape), _counts(*strides), strict=True))
  strides = tuple(stride if size > 1 else 0 for size, stride in pairs)
  (first,) = _counts(first)
  reach = 0
  for stride, size in sorted((d, n) for n, d in pairs if n > 1):
    if stride <= reach:
      raise ValueError('elements of a tensor share memory, as after expand()')
    reach += (size - 1) * stride
  span = 0 if 0 in shape else reach + 1
  if first + span > view.span:
    raise ValueError('a tensor reaches past the end of its storage')
  return Tensor(view.storage, view.first + first, span, shape, strides)
