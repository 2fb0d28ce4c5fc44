"""The collectives of a compiled program, read from its HLO text."""

import collections
from collections.abc import Iterable
import dataclasses
import re
from typing import Any

from resnet.tools.aot import hlo

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_LAYER = re.compile(r'[/(:]((?:stem|stage\d+_block\d+|head)\w*(?:/(?:\w+))?)/')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """One instruction.

  Attributes:
    kind: one of KINDS.
    num_bytes: of its result on one device, each time that it runs.
    num_tensors: that it moves together.
    layer: that it belongs to, such as 'stage1_block1/bn1'; None where it moves
      tensors of many layers, or of none. XLA joins collectives, and for some
      devices keeps one of the names: an instruction is a layer's if all that it
      moves are alike, as the sums of a batch norm and of the one of a shortcut
      beside it, or two are alike and at most one is besides.
    times: that it runs; more than 1 in a loop.
  """

  kind: str
  num_bytes: int
  num_tensors: int
  layer: str | None
  times: int


def find(module: hlo.Module) -> list[Collective]:
  """Returns the collectives of a module, in the order of its text."""
  times = module.times()
  return [
    _read(instruction, times[name])
    for name, instructions in module.computations.items()
    for instruction in instructions
    if instruction.kind.removesuffix('-start') in KINDS
  ]


def _read(instruction: hlo.Instruction, times: int) -> Collective:
  shape = instruction.shape
  kind = instruction.kind.removesuffix('-start')
  if kind != instruction.kind and kind != 'all-reduce':
    # (operands, results, and what the hardware needs besides).
    shape = hlo.elements(shape)[1]
  shapes = hlo.tensors(shape)
  found = collections.Counter(_LAYER.findall(instruction.line))
  layers = found.most_common(1)
  has_pair = len(set(shapes)) < len(shapes)
  is_of_one = len(set(shapes)) == 1 or (len(shapes) <= 3 and has_pair)
  return Collective(
    kind=kind,
    num_bytes=hlo.num_bytes(shape),
    num_tensors=len(shapes),
    layer=layers[0][0] if layers and is_of_one else None,
    times=times,
  )


def summarize(found: Iterable[Collective]) -> list[dict[str, Any]]:
  """Returns a row for each kind, of one layer or of several."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.kind, one.layer is not None].append(one)
  return [
    {
      'kind': kind,
      'per_layer': per_layer,
      'count': sum(one.times for one in group),
      'tensors': sum(one.times * one.num_tensors for one in group),
      'bytes': sum(one.times * one.num_bytes for one in group),
      'largest_bytes': max(one.num_bytes for one in group),
      'layers': sorted({one.layer for one in group if one.layer}),
    }
    for (kind, per_layer), group in groups.items()
  ]
