"""The collectives of a compiled program, read from its HLO text."""

import collections
import re
from typing import Any

from resnet.tools.aot import hlo

_KINDS = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  'collective-permute',
)
_LAYER = re.compile(r'[/(:]((?:stem|stage\d+_block\d+|head)\w*(?:/(?:\w+))?)/')


def summarize(module: hlo.Module) -> list[dict[str, Any]]:
  """Returns a row for each kind, of one layer or of several.

  Bytes are those of results on one device. What is in a loop counts each time
  that it runs.
  """
  groups = collections.defaultdict(list)
  times = module.times()
  for name, instructions in module.computations.items():
    for x in instructions.values():
      # Of an asynchronous one the shape of its end is that of the result.
      kind = x.kind.removesuffix('-done')
      if kind in _KINDS:
        groups[kind, _layer(x) is not None].append((times[name], x))
  return [
    {
      'kind': kind,
      'per_layer': per_layer,
      'count': sum(count for count, _ in group),
      'tensors': sum(n * len(hlo.tensors(x.shape)) for n, x in group),
      'bytes': sum(n * hlo.num_bytes(x.shape) for n, x in group),
      'largest_bytes': max(hlo.num_bytes(x.shape) for _, x in group),
      'layers': sorted({_layer(x) for _, x in group if per_layer}),
    }
    for (kind, per_layer), group in groups.items()
  ]


def _layer(x: hlo.Instruction) -> Any:
  """Returns the layer of a collective, such as 'stage1_block1/bn1', or None.

  None where it moves tensors of many layers, or of none. XLA joins collectives,
  and for some devices keeps one of the names: an instruction is a layer's if
  all that it moves are alike, as the sums of a batch norm and of the one of a
  shortcut beside it, or two are alike and at most one is besides.
  """
  layers = collections.Counter(_LAYER.findall(x.line)).most_common(1)
  shapes = hlo.tensors(x.shape)
  has_pair = len(set(shapes)) < len(shapes)
  is_of_one = len(set(shapes)) == 1 or (len(shapes) <= 3 and has_pair)
  return layers[0][0] if layers and is_of_one else None
