"""The loops of a compiled program, read from its HLO text.

XLA's cost analysis counts the body of a loop once, however often it runs.
"""

import collections
from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import re

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
_TENSOR = re.compile(r'[a-z]+(\d*)\[([\d,]*)\]')
_KERNEL_DIMS = re.compile(r'dim_labels=\w+_(\w+)->')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
# What writes nothing, or is counted where it is done.
_FREE = {'parameter', 'constant', 'get-tuple-element', 'while', 'conditional'}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO.

  Attributes:
    kind: 'fusion', 'all-reduce-start', ...
    shape: of its result, as HLO writes it.
    line: all of it.
    is_root: whether its result is that of its computation.
    operands: names of instructions.
    called: names of computations.
  """

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
    computations: the instructions of each, by name.
    entry: the one that runs once.
  """

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str

  def times(self, *, loops: bool = True) -> Mapping[str, int]:
    """Returns how often each computation runs; once a loop without `loops`.

    A loop whose count the compiler does not know is taken to run once.
    """
    times = collections.Counter()

    def visit(name: str, count: int) -> None:
      times[name] += count
      for x in self.computations.get(name, {}).values():
        rounds = self._rounds(x) if loops else 1
        for called in x.called:
          visit(called, count * rounds)

    visit(self.entry, 1)
    return times

  def _rounds(self, x: Instruction) -> int:
    if x.kind != 'while':
      return 1
    if known := _TRIP_COUNT.search(x.line):
      return int(known[1])
    # A TPU's program has it in the condition alone: `round < constant(4)`.
    (condition,) = _CONDITION.findall(x.line)
    lines = '\n'.join(y.line for y in self.computations[condition].values())
    limits = _LIMIT.findall(lines)
    return int(limits[0]) if len(limits) == 1 else 1

  def loop_factors(self) -> tuple[float, float]:
    """Returns arithmetic and traffic: all rounds of loops / one of each.

    Arithmetic by convolutions and matrix products, or by traffic in a program
    without; traffic by the bytes that are written.
    """
    every_round, one_round = self.times(), self.times(loops=False)

    def factor(weigh: Callable[[str], int]) -> float:
      weights = {name: weigh(name) for name in self.computations}
      once = sum(n * one_round[name] for name, n in weights.items())
      if not once:
        return 0.0
      return sum(n * every_round[name] for name, n in weights.items()) / once

    traffic = factor(self._written) or 1.0
    return factor(self._products) or traffic, traffic

  def _products(self, computation: str) -> int:
    """Returns the multiply-adds of convolutions and matrix products."""
    beside = self.computations[computation]
    return sum(_multiply_adds(x, beside) for x in beside.values())

  def _written(self, computation: str) -> int:
    """Returns the bytes that instructions write to memory."""
    if computation in self._fused:
      return 0
    beside = self.computations[computation]
    return sum(
      self._bytes(x, beside)
      for x in beside.values()
      if x.kind not in _FREE | {'tuple', 'bitcast'}
    )

  @functools.cached_property
  def _fused(self) -> set[str]:
    return {
      called
      for instructions in self.computations.values()
      for x in instructions.values()
      if x.kind not in ('while', 'conditional', 'call')
      for called in x.called
    }

  def _bytes(self, x: Instruction, beside: Mapping[str, Instruction]) -> int:
    """Returns the bytes that are new in a result: of an update its part."""
    if x.kind == 'fusion':
      inner = self.computations[x.called[0]]
      (root,) = (y for y in inner.values() if y.is_root)
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
      computations[name] = {}
      entry = name if found['entry'] else entry
    elif name and (found := _INSTRUCTION.match(line)):
      arguments = re.split(r'\), [a-z_]+=', found['rest'], maxsplit=1)[0]
      called = re.findall(r'[\w.-]+', ' '.join(_CALLED.findall(line)))
      if found['kind'] in ('async-update', 'async-done'):
        called = ()  # As its start.
      computations[name][found['name']] = Instruction(
        kind=found['kind'],
        shape=found['shape'],
        line=line,
        is_root=bool(found['root']),
        operands=tuple(_NAME.findall(arguments)),
        called=tuple(called),
      )
  return Module(computations, entry)


def _multiply_adds(x: Instruction, beside: Mapping[str, Instruction]) -> int:
  kernel = _KERNEL_DIMS.search(x.line)
  if not kernel and x.kind != 'dot':
    return 0
  ((_, output),) = tensors(x.shape)[:1]
  operand = beside[x.operands[1 if kernel else 0]]
  ((_, dims),) = tensors(operand.shape)[:1]
  if kernel:
    pairs = zip(kernel[1], dims, strict=False)
    terms = [n for label, n in pairs if label != 'o']
  else:
    terms = [dims[i] for i in _numbers(_CONTRACTED.findall(x.line)[0])]
  return math.prod(output) * math.prod(terms)


def tensors(shape: str) -> list[tuple[int, tuple[int, ...]]]:
  """'(f32[2,3]{1,0}, bf16[])' -> [(4, (2, 3)), (2, ())], bytes and dims.

  A truth value, 'pred', takes a byte.
  """
  return [
    (max(int(bits or 8) // 8, 1), _numbers(dims))
    for bits, dims in _TENSOR.findall(shape)
  ]


def num_bytes(shape: str) -> int:
  """'(f32[2,3]{1,0}, bf16[8])' -> 24 + 16."""
  return sum(size * math.prod(dims) for size, dims in tensors(shape))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)
