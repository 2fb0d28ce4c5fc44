"""What a trace of a compiled program says: the time of each operation."""

import bisect
import collections
from collections.abc import Callable, Iterator
import pathlib
import re
from typing import Any

import jax

from resnet.tools.aot import hlo

_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_END = 'end: '  # Of an operation, in the trace of a CPU.
# Their time is that of the operations within.
_CONTAINERS = frozenset(('while', 'call', 'conditional'))
_MOVES = frozenset(
  [
    *('copy', 'copy-start', 'copy-done', 'transpose', 'reverse', 'pad'),
    *('slice', 'dynamic-slice', 'dynamic-update-slice', 'concatenate'),
    *('bitcast', 'reshape', 'broadcast', 'iota', 'parameter', 'constant'),
    *('tuple', 'get-tuple-element', 'fusion'),
  ]
)


def record(run: Callable[[], Any], folder: str) -> None:
  """Runs once, and writes a trace for xprof or TensorBoard."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  options.host_tracer_level = 2
  with jax.profiler.trace(folder, profiler_options=options):
    run()


def read(folder: str, text: str, num_steps: int) -> list[dict[str, Any]]:
  """Returns the operations of the newest trace, the most costly first.

  Each has a name in the compiled program, a kind ('convolution', 'matrix
  product', 'pooling', 'reduction' for the statistics of batch norm and their
  gradients, 'elementwise', 'copy' or 'collective'), its source in the model (''
  where the compiler does not tell), milliseconds of a step from its begin to
  its end, and its share of them all.

  Args:
    folder: of `record`.
    text: HLO of the compiled program.
    num_steps: that were recorded.
  """
  paths = pathlib.Path(folder).rglob('*.xplane.pb')
  path = max(paths, key=lambda path: path.stat().st_mtime)
  known = instructions(text)
  ms: Any = collections.Counter()
  profile = jax.profiler.ProfileData.from_file(str(path))
  for name, nanoseconds in _events(profile):
    if name in known:
      ms[name] += nanoseconds / 1e6 / num_steps
  total = sum(ms.values())
  return [
    {
      'name': name,
      'kind': known[name][0],
      'source': known[name][1],
      'ms': value,
      'share': value / total,
    }
    for name, value in ms.most_common()
  ]


def by_kind(operations: list[dict[str, Any]]) -> dict[str, float]:
  """Returns the share of time of each kind, the largest first."""
  shares: Any = collections.Counter()
  for one in operations:
    shares[one['kind']] += one['share']
  return dict(shares.most_common())


def _events(profile: Any) -> Iterator[tuple[str, float]]:
  """Yields names of operations and nanoseconds.

  On a CPU the event of a convolution is over once other threads have the work;
  'end: NAME' comes after what it leads to has run in the same thread. So its
  time is that until the next operation begins, or until that end.
  """
  found, ends = [], collections.defaultdict(list)
  for plane in profile.planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name is None and line.name == 'XLA Ops':  # A TPU's.
          name = event.name.partition(' = ')[0].lstrip('%')
        if name is not None:
          found.append((event.start_ns, str(name), event.duration_ns))
        elif event.name.startswith(_END):
          ends[event.name.removeprefix(_END)].append(event.start_ns)
  found.sort()
  begins = [start for start, _, _ in found]
  for own in ends.values():
    own.sort()
  for start, name, duration in found:
    own = ends[name]
    place = bisect.bisect_left(own, start + duration)
    if place < len(own):
      following = bisect.bisect_left(begins, start + duration)
      end = min([own[place], *begins[following : following + 1]])
      duration = max(duration, end - start)
    yield name, duration


def instructions(text: str) -> dict[str, tuple[str, str]]:
  """Returns kind and source of each instruction that is no container."""
  computations = hlo.parse(text).computations

  def codes(x: hlo.Instruction) -> set[str]:
    within = [
      codes(y) for name in x.called for y in computations.get(name, {}).values()
    ]
    return {x.kind}.union(*within)

  return {
    name: (_kind(codes(x), x.line), _layer(x.line))
    for instructions in computations.values()
    for name, x in instructions.items()
    if x.kind not in _CONTAINERS
  }


def _layer(line: str) -> str:
  match = _SOURCE.search(line)
  parts = match[1].split('/') if match else []
  # 'jit(train_step)/jvp(ResNet)/ResNet._forward/stage1_block1/conv1/...'
  is_gradient = any(part.startswith('transpose(') for part in parts)
  names = [part for part in parts if '(' not in part and '.' not in part]
  return '/'.join(names) + (' (gradient)' if is_gradient else '')


def _kind(codes: set[str], line: str) -> str:
  match = _TARGET.search(line)
  library = match[1] if match else ''  # Such as cuDNN's.
  if 'convolution' in codes or '$conv' in library:
    return 'convolution'
  if 'dot' in codes or 'gemm' in library or 'matmul' in library:
    return 'matrix product'
  if any(code.startswith(('all-', 'reduce-scatter')) for code in codes):
    return 'collective'
  if codes & {'reduce-window', 'select-and-scatter', 'scatter'}:
    return 'pooling'
  if 'reduce' in codes:
    return 'reduction'
  return 'copy' if codes <= _MOVES else 'elementwise'
