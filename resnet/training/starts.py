"""Where, when and by what code a run was begun and continued."""

from collections.abc import Sequence
import datetime
import json
import os
import pathlib
import subprocess
from typing import Any

import jax

STARTS_FILE = 'starts.jsonl'
_ROOT = pathlib.Path(__file__).parents[2]


def record_start(workdir: str, *, step: int, devices: Sequence[Any]) -> None:
  """Appends a line to `starts.jsonl`: the training begins after `step`."""
  line = {
    'step': step,
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'commit': commit(),
    'hardware': hardware(devices),
    'jax': jax.__version__,
  }
  with open(os.path.join(workdir, STARTS_FILE), 'a') as file:
    file.write(json.dumps(line) + '\n')


def read_starts(workdir: str) -> list[dict[str, Any]]:
  """Returns the lines of `starts.jsonl`; none where there is no such file."""
  try:
    with open(os.path.join(workdir, STARTS_FILE)) as file:
      lines = file.readlines()
  except FileNotFoundError:
    return []
  # A kill may have left half a line.
  return [json.loads(line) for line in lines if line.endswith('}\n')]


def hardware(devices: Sequence[Any]) -> str:
  """Returns '8 x NVIDIA H100', or the cores and the make of the CPU."""
  if devices[0].platform == 'cpu':
    return f'{os.cpu_count()} cores of {_cpu_model()}'
  return f'{len(devices)} x {devices[0].device_kind}'


def commit() -> str | None:
  """Returns the git commit of this code, '+' if changed; None without git."""
  try:
    head = _git('rev-parse', '--short=12', 'HEAD').strip()
    changed = _git('status', '--porcelain', '--untracked-files=no').strip()
  except (OSError, subprocess.CalledProcessError):
    return None
  return f'{head}+' if changed else head


def _git(*args: str) -> str:
  return subprocess.run(
    ['git', '-C', str(_ROOT), *args],
    check=True,
    capture_output=True,
    text=True,
  ).stdout


def _cpu_model() -> str:
  try:
    with open('/proc/cpuinfo') as file:
      for line in file:
        if line.startswith('model name'):
          return line.partition(':')[2].strip()
  except OSError:
    pass  # Not Linux.
  return 'a CPU'
