"""Records when, on what hardware and from which commit a run was started."""

from collections.abc import Sequence
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

from resnet.files import read_json_lines, write_atomically

STARTS_FILE = 'starts.jsonl'
_ROOT = pathlib.Path(__file__).parents[2]


def record_start(workdir: str, *, step: int, devices: Sequence[Any]) -> None:
  """Appends a line to `starts.jsonl`: training starts after `step`."""
  facts = {'commit': commit(), 'hardware': hardware(devices)}
  _append(workdir, 'step', step, **facts, jax=jax.__version__)


def record_end(workdir: str, *, step: int) -> None:
  """Appends a line to `starts.jsonl`: training ended after `step`."""
  _append(workdir, 'end_step', step)


def _append(workdir: str, kind: str, step: int, **facts: Any) -> None:
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
  lines = [*_read(workdir), {kind: step, 'time': now, **facts}]
  write_atomically(
    os.path.join(workdir, STARTS_FILE),
    ''.join(f'{json.dumps(line)}\n' for line in lines),
  )


def _read(workdir: str) -> list[dict[str, Any]]:
  return read_json_lines(os.path.join(workdir, STARTS_FILE))


def read_starts(workdir: str) -> list[dict[str, Any]]:
  """Returns the lines that `record_start` wrote; [] if the file is missing."""
  return [line for line in _read(workdir) if 'commit' in line]


def read_last_step(workdir: str) -> int:
  """Returns the highest step at which training started or ended."""
  steps = [line.get('end_step', line.get('step', 0)) for line in _read(workdir)]
  return max(steps, default=0)


def hardware(devices: Sequence[Any]) -> str:
  """Describes devices: '8 x NVIDIA H100', or the CPU's cores and model."""
  if devices[0].platform == 'cpu':
    return f'{os.cpu_count()} cores of {cpu_model()}'
  return f'{len(devices)} x {devices[0].device_kind}'


def commit() -> str | None:
  """Returns the git commit, with '+' if files changed; None without git."""
  if not (_ROOT / 'main.py').exists():
    return None  # An installed package may lie in another project's repository.
  describe = ['describe', '--always', '--exclude=*', '--abbrev=12', '--dirty=+']
  try:
    return subprocess.check_output(
      ['git', '-C', str(_ROOT), *describe], stderr=subprocess.DEVNULL, text=True
    ).strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def code_hash() -> str:
  """Returns a checksum of the source files of this program."""
  digest = hashlib.sha256()
  for part in ('main.py', 'configs', 'resnet'):
    for path in sorted([_ROOT / part, *(_ROOT / part).rglob('*.py')]):
      if path.is_file():
        digest.update(f'{path.relative_to(_ROOT)}\n'.encode())
        digest.update(path.read_bytes())
  return digest.hexdigest()[:12]


def cpu_model() -> str:
  """Returns the model name of the processor."""
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.machine()  # Only Linux on x86 lists a model name.
