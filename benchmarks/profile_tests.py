"""Pytest plugin that measures the time and the memory of each test.

  .venv/bin/python -m pytest -m 'not slow' -p benchmarks.profile_tests

Writes a line for each test to $TEST_PROFILE (by default test_profile.jsonl)
with its seconds, compilations, started processes, and the peak memory of its
process. `.venv/bin/python -m benchmarks.profile_tests FILE` sums them up by
folder.
"""

import collections
import json
import os
import resource
import subprocess
import sys
import time

import jax
import pytest

_COMPILED = '/jax/core/compile/backend_compile_duration'
_counts = collections.Counter()


def _count_compilation(event, duration, **_):
  if event == _COMPILED:
    _counts['compilations'] += 1
    _counts['compile_seconds'] += duration


def pytest_configure():
  jax.monitoring.register_event_duration_secs_listener(_count_compilation)
  start = subprocess.Popen.__init__

  def count_and_start(self, *args, **kwargs):
    _counts['processes'] += 1
    start(self, *args, **kwargs)

  subprocess.Popen.__init__ = count_and_start


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
  before, start = _counts.copy(), time.monotonic()
  result = yield
  row = {
    'test': item.nodeid,
    'seconds': time.monotonic() - start,
    'peak_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    **(_counts - before),
  }
  path = os.environ.get('TEST_PROFILE', 'test_profile.jsonl')
  with open(path, 'a') as file:
    file.write(json.dumps(row) + '\n')
  return result


def main():
  """Prints a Markdown table of a profile."""
  folders = collections.defaultdict(collections.Counter)
  peak = 0
  with open(sys.argv[1]) as file:
    for line in file:
      row = json.loads(line)
      folder = row['test'].partition('::')[0].rpartition('/')[0]
      peak = max(peak, row.pop('peak_mb'))
      del row['test']
      for name in (folder, 'all'):
        folders[name].update({**row, 'tests': 1})
  names = ('tests', 'seconds', 'compilations', 'compile_seconds', 'processes')
  print(f'| folder | {" | ".join(names)} |\n|---|{"---|" * len(names)}')
  for folder, counts in sorted(folders.items()):
    print(f'| {folder} | {" | ".join(f"{counts[n]:,.0f}" for n in names)} |')
  print(f'\nPeak memory of a process: {peak:,} MB.')


if __name__ == '__main__':
  main()
