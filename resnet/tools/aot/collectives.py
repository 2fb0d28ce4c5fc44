"""Finds the collectives of a compiled program in its HLO text."""

import collections
import math
import re
from typing import Any

_KINDS = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  'collective-permute',
)
# The first computation to run begins with ENTRY, which matches as its name.
_COMPUTATION = re.compile(r'%?(?P<name>[\w.-]+) .*\{$')
_INSTRUCTION = re.compile(
  r'\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<kind>[a-z][\w-]*)\('
)
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|\w+_computations?)=(\{.*?\}|%?[\w.-]+)'
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r'condition=%?([\w.-]+)')
_LIMIT = re.compile(r' = [su]\d+\[\]\S* constant\((\d+)\)')
TENSOR = re.compile(r'[a-z]+(\d*)\[([\d,]*)\]')
_LAYER = re.compile(r'[/(:]((?:stem|stage\d+_block\d+|head)\w*(?:/(?:\w+))?)/')


def summarize(text: str) -> list[dict[str, Any]]:
  """Returns a row for each kind of collective and value of `per_layer`.

  `per_layer` tells whether each collective belongs to a single layer. Bytes are
  those of the results on one device. A collective in a loop counts as often
  as it runs.
  """
  computations = parse(text)
  times = _count_runs(computations)
  groups = collections.defaultdict(list)
  for name, instructions in computations.items():
    for x in instructions:
      # The end of an asynchronous collective has the shape of the result.
      kind = x['kind'].removesuffix('-done')
      if kind in _KINDS:
        tensors = TENSOR.findall(x['shape'])
        layer = _layer(x.string, tensors)
        groups[kind, layer is not None].append((times[name], tensors, layer))
  return [
    {
      'kind': kind,
      'per_layer': per_layer,
      'count': sum(count for count, _, _ in group),
      'tensors': sum(count * len(tensors) for count, tensors, _ in group),
      'bytes': sum(count * num_bytes(tensors) for count, tensors, _ in group),
      'layers': sorted({layer for _, _, layer in group if layer}),
    }
    for (kind, per_layer), group in groups.items()
  ]


def parse(text: str) -> dict[str, list[re.Match[str]]]:
  """Returns the instructions by computation; the first to run is 'ENTRY'."""
  computations, instructions = {}, []
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      instructions = computations[found['name']] = []
    elif found := _INSTRUCTION.match(line):
      instructions.append(found)
  return computations


def _count_runs(computations: Any) -> dict[str, int]:
  """Counts the runs of each computation; loops of unknown length count once."""
  times = collections.Counter()

  def visit(name: str, count: int) -> None:
    times[name] += count
    for x in computations.get(name, ()):
      if x['kind'] in ('async-update', 'async-done'):
        continue  # Counted at their start, which calls the same computations.
      rounds = _trip_count(x, computations) if x['kind'] == 'while' else 1
      called = ' '.join(_CALLED.findall(x.string))
      for other in re.findall(r'[\w.-]+', called):
        visit(other, count * rounds)

  visit('ENTRY', 1)
  return times


def _trip_count(loop: re.Match[str], computations: Any) -> int:
  if known := _TRIP_COUNT.search(loop.string):
    return int(known[1])
  # On a TPU only the condition holds the trip count: `i < constant(4)`.
  (condition,) = _CONDITION.findall(loop.string)
  limits = _LIMIT.findall('\n'.join(x.string for x in computations[condition]))
  return int(limits[0]) if len(limits) == 1 else 1


def _layer(line: str, tensors: list[Any]) -> str | None:
  """Returns the layer of a collective, such as 'stage1_block1/bn1', or None.

  XLA may combine the collectives of several layers and keep the name of one. We
  trust that name if all tensors have the same shape, like the sums of a batch
  norm and of the batch norm in the parallel shortcut. Of three tensors, only
  two need the same shape.
  """
  layers = collections.Counter(_LAYER.findall(line)).most_common(1)
  num_shapes = len(set(tensors))
  is_one_layer = num_shapes == 1 or num_shapes < len(tensors) <= 3
  return layers[0][0] if layers and is_one_layer else None


def num_bytes(tensors: list[tuple[str, str]]) -> int:
  """Returns the bytes of tensors (bits, dimensions), such as ('32', '2,3')."""
  return sum(  # A boolean, 'pred', takes a byte.
    max(int(bits or 8) // 8, 1) * math.prod(map(int, re.findall(r'\d+', dims)))
    for bits, dims in tensors
  )
