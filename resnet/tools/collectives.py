"""The collectives of a compiled program, read from its HLO text."""

import collections
from collections.abc import Iterable
import dataclasses
import math
import re
from typing import Any

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_INSTRUCTION = re.compile(
  rf'= (?P<shape>.*?) (?P<kind>{"|".join(KINDS)})(?P<start>-start)?\('
)
_TENSOR = re.compile(r'([a-z]+\d*)\[([\d,]*)\]')
_LAYER = re.compile(r'[/(:]((?:stem|stage\d+_block\d+|head)\w*(?:/(?:\w+))?)/')
_BITS = re.compile(r'\d+')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One instruction; one in a loop is counted once.

  Attributes:
    kind: one of KINDS.
    num_bytes: of its result on one device.
    num_tensors: that it moves together.
    layer: that it belongs to, such as 'stage1_block1/bn1'; None where it moves
      tensors of many layers, or of none. XLA joins collectives, and for some
      devices keeps one of the names: an instruction is a layer's if all that it
      moves are alike, as the sums of a batch norm and of the one of a shortcut
      beside it, or two are alike and at most one is besides.
  """

  kind: str
  num_bytes: int
  num_tensors: int
  layer: str | None


def find(hlo: str) -> list[Collective]:
  """Returns the collectives of a module, in the order of its text."""
  found = []
  for line in hlo.splitlines():
    if not (match := _INSTRUCTION.search(line)):
      continue
    shapes = _TENSOR.findall(match['shape'])
    tensors = [
      math.prod(map(int, filter(None, dims.split(',')))) * _num_bytes(dtype)
      for dtype, dims in shapes
    ]
    if match['start'] and match['kind'] != 'all-reduce':
      # (operands, results, and what the hardware needs besides).
      tensors = [max(tensors)] if len(tensors) < 4 else tensors[1::2]
    layers = collections.Counter(_LAYER.findall(line)).most_common(1)
    has_pair = len(set(shapes)) < len(shapes)
    is_of_one = len(set(shapes)) == 1 or (len(shapes) <= 3 and has_pair)
    found.append(
      Collective(
        kind=match['kind'],
        num_bytes=sum(tensors),
        num_tensors=len(tensors),
        layer=layers[0][0] if layers and is_of_one else None,
      )
    )
  return found


def _num_bytes(dtype: str) -> int:
  """'bf16' -> 2; a truth value, 'pred', takes a byte."""
  bits = _BITS.search(dtype)
  return max(int(bits[0]) // 8, 1) if bits else 1


def summarize(found: Iterable[Collective]) -> list[dict[str, Any]]:
  """Returns a row for each kind, of one layer or of several."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.kind, one.layer is not None].append(one)
  return [
    {
      'kind': kind,
      'per_layer': per_layer,
      'count': len(group),
      'tensors': sum(one.num_tensors for one in group),
      'bytes': sum(one.num_bytes for one in group),
      'largest_bytes': max(one.num_bytes for one in group),
      'layers': sorted({one.layer for one in group if one.layer}),
    }
    for (kind, per_layer), group in groups.items()
  ]
