"""What a trace of a compiled program says: the time of each operation."""

import bisect
from collections.abc import Callable, Iterator
import dataclasses
import pathlib
import re
from typing import Any

import jax

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\(')
_CALLED = re.compile(r'(?:calls|to_apply|body)=%?([\w.-]+)')
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
    *('tuple', 'get-tuple-element'),
  ]
)


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation of a program, as it was timed.

  Attributes:
    name: in the compiled program.
    kind: 'convolution', 'matrix product', 'pooling', 'reduction' (the
      statistics of batch norm, and their gradients), 'elementwise', 'copy' or
      'collective'.
    source: where the model says so; '' where the compiler does not tell.
    seconds: of a step, from its begin to its end.
  """

  name: str
  kind: str
  source: str
  seconds: float


def record(run: Callable[[], Any], folder: str) -> None:
  """Runs once, and writes a trace for xprof or TensorBoard."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  options.host_tracer_level = 2
  jax.profiler.start_trace(folder, profiler_options=options)
  try:
    run()
  finally:
    jax.profiler.stop_trace()


def read(folder: str, hlo: str, num_steps: int) -> list[Operation]:
  """Returns the operations of the newest trace, the most costly first.

  Args:
    folder: of `record`.
    hlo: text of the compiled program.
    num_steps: that were recorded.
  """
  path = max(pathlib.Path(folder).rglob('*.xplane.pb'), key=_age)
  seconds: dict[str, float] = {}
  profile = jax.profiler.ProfileData.from_file(str(path))
  for name, nanoseconds in events(profile):
    seconds[name] = seconds.get(name, 0.0) + nanoseconds / 1e9 / num_steps
  known = instructions(hlo)
  found = [
    Operation(name, *known[name], seconds=value)
    for name, value in seconds.items()
    if name in known
  ]
  return sorted(found, key=lambda operation: -operation.seconds)


def by_kind(operations: list[Operation]) -> dict[str, float]:
  """Returns the share of time of each kind, the largest first."""
  total = sum(one.seconds for one in operations)
  shares: dict[str, float] = {}
  for one in operations:
    shares[one.kind] = shares.get(one.kind, 0.0) + one.seconds / total
  return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _age(path: pathlib.Path) -> float:
  return path.stat().st_mtime


def events(profile: Any) -> Iterator[tuple[str, float]]:
  """Yields names of operations and nanoseconds.

  On a CPU the event of a convolution is over once other threads have the work;
  'end: NAME' comes after what it leads to has run in the same thread. So its
  time is that until the next operation begins, or until that end.
  """
  found, ends = [], []
  for plane in profile.planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name is None and line.name == 'XLA Ops':  # A TPU's.
          name = event.name.partition(' = ')[0].lstrip('%')
        if name is not None:
          found.append((event.start_ns, str(name), event.duration_ns))
        elif event.name.startswith(_END):
          ends.append((event.start_ns, event.name.removeprefix(_END)))
  found.sort()
  begins = [start for start, _, _ in found]
  ends_by_name: dict[str, list[float]] = {}
  for end, name in sorted(ends):
    ends_by_name.setdefault(name, []).append(end)
  for start, name, duration in found:
    own = ends_by_name.get(name, [])
    place = bisect.bisect_left(own, start + duration)
    if place < len(own):
      following = bisect.bisect_left(begins, start + duration)
      end = min([own[place], *begins[following : following + 1]])
      duration = max(duration, end - start)
    yield name, duration


def instructions(hlo: str) -> dict[str, tuple[str, str]]:
  """Returns kind and source of each instruction that is no container."""
  lines: dict[str, list[tuple[str, str, str]]] = {}
  computation = ''
  for line in hlo.splitlines():
    if match := _INSTRUCTION.match(line):
      lines[computation].append((match[1], match[2], line))
    elif match := _COMPUTATION.match(line):
      computation = match[1]
      lines[computation] = []

  def codes(name: str) -> set[str]:
    found: set[str] = set()
    for _, code, line in lines.get(name, []):
      found |= {code}.union(*map(codes, _CALLED.findall(line)))
    return found

  return {
    name: (
      _kind({code}.union(*map(codes, _CALLED.findall(line))), line),
      source,
    )
    for computation in lines.values()
    for name, code, line in computation
    if code not in _CONTAINERS
    for source in [_layer(line)]
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
  return 'copy' if codes - {'fusion'} <= _MOVES else 'elementwise'
