"""Counts, in the text of a compiled program, what moves activations."""

import collections
import math
import re

from resnet.tools.aot import collectives

# Instructions that read and write nothing themselves.
_FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('call', 'while', 'conditional', 'async-start', 'async-done'),
}
_OPERANDS = re.compile(r'\((.*?)\)(?:, |$)')
_INNER = re.compile(r'(?:calls|to_apply)=%?([\w.-]+)')


def count(text, *, largest_kernel):
  """Returns the counts of a program.

  Args:
    text: optimised HLO, by `as_text` of a compiled program.
    largest_kernel: elements of the largest parameter; a larger tensor is an
      activation.

  Returns:
    'convolutions' by target and layout; 'transposes' of 'activations' and of
    smaller tensors, in and outside of fusions; 'fusions' by kind; and 'bytes',
    the sizes of all operands and results of what runs (a fusion that reads
    only a part of an operand counts the whole).
  """
  computations = collectives.parse(text)
  inner = {
    name
    for lines in computations.values()
    for x in lines
    if x['kind'] not in ('call', 'async-start')
    for name in _INNER.findall(x.string)
  }
  convolutions, fusions = collections.Counter(), collections.Counter()
  transposes, num_bytes = collections.Counter(), 0
  for computation, lines in computations.items():
    shapes = {x['name']: collectives.TENSOR.findall(x['shape']) for x in lines}
    for x in lines:
      kind, rest = x['kind'], x.string[x.end() - 1 :]
      tensors = shapes[x['name']]
      if layout := re.search(r'dim_labels=([\w>-]+)', rest):
        target = re.search(r'custom_call_target="(.*?)"', rest)
        convolutions[f'{target[1] if target else kind} {layout[1]}'] += 1
      if kind == 'transpose':
        size = math.prod(int(n) for n in tensors[0][1].split(',') if n)
        is_large = size > largest_kernel
        transposes['activations' if is_large else 'smaller'] += 1
      if kind == 'fusion':
        fusions[re.findall(r'kind=(\w+)', rest)[0]] += 1
      if kind not in _FREE and computation not in inner:
        operands = _OPERANDS.match(rest)
        names = re.findall(r'%([\w.-]+)', operands[1]) if operands else []
        for name in [x['name'], *names]:
          num_bytes += collectives.num_bytes(shapes.get(name, []))
  return {
    'convolutions': dict(convolutions),
    'transposes': dict(transposes),
    'fusions': dict(fusions),
    'bytes': num_bytes,
  }
