"""The loops of a compiled program, read from its HLO text.

XLA's cost analysis counts the body of a loop once, however often it runs.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import re
from typing import Any

_COMPUTATION = re.compile(r'(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$')
_INSTRUCTION = re.compile(
  r'\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?)'
  r' (?P<kind>[a-z][\w-]*)\((?P<rest>.*)'
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'condition=%?([\w.-]+)')
_LIMIT = re.compile(r' = [su]\d+\[\]\S* constant\((\d+)\)')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computations?)=(\{.*?\}|%?[\w.-]+)'
)
_NAME = re.compile(r'%([\w.-]+)')
_TENSOR = re.compile(r'([a-z]+\d*)\[([\d,]*)\]')
_KERNEL_DIMS = re.compile(r'dim_labels=\w+_(\w+)->')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
# What writes nothing, or is counted where it is done.
_FREE = {'parameter', 'constant', 'get-tuple-element', 'while', 'conditional'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line of HLO.

  Attributes:
    name: in its module.
    kind: 'fusion', 'all-reduce-start', ...
    shape: of its result, as HLO writes it.
    line: all of it.
    is_root: whether its result is that of its computation.
    operands: names of instructions.
    called: names of computations.
  """

  name: str
  kind: str
  shape: str
  line: str
  is_root: bool
  operands: tuple[str, ...]
  called: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program, by the names of its computations.

  Attributes:
    computations: the instructions of each.
    entry: the one that runs once.
  """

  computations: Mapping[str, tuple[Instruction, ...]]
  entry: str

  def times(self, *, loops: bool = True) -> Mapping[str, int]:
    """Returns how often each computation runs; once a loop without `loops`.

    A loop whose count the compiler does not know is taken to run once.
    """
    times = collections.Counter()

    def visit(name: str, count: int) -> None:
      times[name] += count
      for instruction in self.computations.get(name, ()):
        rounds = self._rounds(instruction) if loops else 1
        for called in instruction.called:
          visit(called, count * rounds)

    visit(self.entry, 1)
    return times

  def _rounds(self, instruction: Instruction) -> int:
    if instruction.kind != 'while':
      return 1
    if known := _TRIP_COUNT.search(instruction.line):
      return int(known[1])
    # A TPU's program has it in the condition alone: `round < constant(4)`.
    condition = _CONDITION.findall(instruction.line)[0]
    found = [_LIMIT.search(x.line) for x in self.computations[condition]]
    limits = [int(limit[1]) for limit in found if limit]
    return limits[0] if len(limits) == 1 else 1

  def flops_factor(self) -> float:
    """Returns arithmetic with all rounds of loops / with one of each.

    By convolutions and matrix products; by traffic in a program without.
    """
    return self._factor(self._products) or self.traffic_factor()

  def traffic_factor(self) -> float:
    """Returns bytes written with all rounds of loops / with one of each."""
    return self._factor(self._written) or 1.0

  def _factor(self, weigh: Callable[[str], int]) -> float:
    weights = {name: weigh(name) for name in self.computations}
    all_rounds, one_round = (
      sum(weights.get(name, 0) * count for name, count in times.items())
      for times in (self.times(), self.times(loops=False))
    )
    return all_rounds / one_round if one_round else 0.0

  def _products(self, computation: str) -> int:
    """Returns the multiply-adds of convolutions and matrix products."""
    instructions = self.computations[computation]
    shapes = {x.name: x.shape for x in instructions}
    return sum(_multiply_adds(x, shapes) for x in instructions)

  def _written(self, computation: str) -> int:
    """Returns the bytes that instructions write to memory."""
    if computation in self._fused:
      return 0
    instructions = {x.name: x for x in self.computations[computation]}
    return sum(
      self._bytes(x, instructions)
      for x in instructions.values()
      if x.kind not in _FREE | {'tuple', 'bitcast'}
    )

  @functools.cached_property
  def _fused(self) -> set[str]:
    return {
      called
      for instructions in self.computations.values()
      for x in instructions
      if x.kind not in ('while', 'conditional', 'call')
      for called in x.called
    }

  def _bytes(self, x: Instruction, beside: Mapping[str, Instruction]) -> int:
    """Returns the bytes that are new in a result: of an update its part."""
    if x.kind == 'fusion':
      inner = {y.name: y for y in self.computations[x.called[0]]}
      (root,) = [y for y in inner.values() if y.is_root]
      return self._bytes(root, inner)
    if x.kind in ('tuple', 'bitcast'):
      return sum(self._bytes(beside[name], beside) for name in x.operands)
    if x.kind == 'dynamic-update-slice':
      return num_bytes(beside[x.operands[1]].shape)
    return num_bytes(x.shape)


def parse(text: str) -> Module:
  """Reads the HLO text of a compiled program."""
  computations, entry, name = {}, '', ''
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      name = found['name']
      computations[name] = []
      entry = name if found['entry'] else entry
    elif name and (found := _INSTRUCTION.match(line)):
      computations[name].append(_instruction(found, line))
  return Module({k: tuple(v) for k, v in computations.items()}, entry)


def _instruction(found: re.Match[str], line: str) -> Instruction:
  arguments = re.split(r'\), [a-z_]+=', found['rest'], maxsplit=1)[0]
  return Instruction(
    name=found['name'],
    kind=found['kind'],
    shape=found['shape'],
    line=line,
    is_root=bool(found['root']),
    operands=tuple(_NAME.findall(arguments)),
    called=()
    if found['kind'] in ('async-update', 'async-done')  # As its start.
    else tuple(re.findall(r'[\w.-]+', ' '.join(_CALLED.findall(line)))),
  )


def _multiply_adds(x: Instruction, shapes: Mapping[str, str]) -> int:
  kernel = _KERNEL_DIMS.search(x.line)
  if not kernel and x.kind != 'dot':
    return 0
  size = math.prod(_dims(tensors(x.shape)[0][1]))
  if kernel:
    dims = _dims(tensors(shapes[x.operands[1]])[0][1])
    pairs = zip(kernel[1], dims, strict=False)
    return size * math.prod(n for label, n in pairs if label != 'o')
  dims = _dims(tensors(shapes[x.operands[0]])[0][1])
  contracted = _CONTRACTED.findall(x.line)
  return size * math.prod(dims[i] for i in _dims(contracted[0]))


def tensors(shape: str) -> list[tuple[str, str]]:
  """'(f32[2,3]{1,0}, bf16[])' -> [('f32', '2,3'), ('bf16', '')]."""
  return _TENSOR.findall(shape)


def num_bytes(shape: str) -> int:
  """'(f32[2,3]{1,0}, bf16[8])' -> 24 + 16."""
  return sum(
    math.prod(_dims(dims)) * _bytes_of(dtype) for dtype, dims in tensors(shape)
  )


def elements(shape: str) -> list[str]:
  """'((f32[2], s8[3]), f32[5], u32[])' -> ['(f32[2], s8[3])', 'f32[5]', ...].

  Commas in brackets of any kind do not part the elements of a tuple.
  """
  depth, parts = 0, ['']
  for letter in shape[1:-1]:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def _dims(text: str) -> list[int]:
  return [int(n) for n in text.split(',') if n]


def _bytes_of(dtype: str) -> int:
  """'bf16' -> 2; a truth value, 'pred', takes a byte."""
  bits: Any = re.search(r'\d+', dtype)
  return max(int(bits[0]) // 8, 1) if bits else 1
