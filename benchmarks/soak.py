"""Kills, stops, damages and resizes small runs at random; checks their results.

  PYTHONPATH=. python benchmarks/soak.py --output=docs/results/soak.json

Repeats rounds until the time is over. In each round a run of `main.py` is
killed (SIGKILL), stopped (SIGTERM, SIGINT, or two signals) or left alone at
random times, its newest checkpoint is sometimes damaged, and it is restarted
until it is complete. In rounds named 'one process' and 'two processes' all
starts have the same devices, and metrics, parameters, statistics, optimizer
state and averages must be bit-equal to those of an undisturbed run. In rounds
named 'resized' every start has other devices, and losses must agree up to
rounding.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time

from absl import logging
import numpy as np

from resnet.files import write_atomically
from tests import programs
from tests.runs import assert_close_runs, assert_same_run

COMMAND = (
  'main.py',
  *programs.SMALL,
  '--config.num_epochs=40',
  '--config.log_every_steps=4',
  '--config.save_every_steps=5',
  '--config.keep_checkpoints=5',
  '--config.ema_decay=0.99',
  # So low that rounding errors do not grow.
  '--config.schedule.learning_rate=0.001',
)
KINDS = {'one process': (1, 1), 'resized': None, 'two processes': (2, 1)}
SIZES = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))  # (processes, devices of each)
RTOL = 1e-4
GOOD_CODES = {
  *(0, 130, 143),
  # A signal before training handles it.
  *(-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT),
}
# When another process has died, JAX may end this one before we do.
GOOD_CODES_OF_SEVERAL = {*GOOD_CODES, 1, -signal.SIGABRT}


class Soak:
  def __init__(self, folder, seed):
    self.folder = folder
    self.rng = np.random.default_rng(seed)
    self.events = collections.Counter()

  def start(self, workdir, size, num_workers):
    count, devices = size
    cluster = (
      f'--coordinator_address=127.0.0.1:{programs.free_port()}',
      f'--num_processes={count}',
      '--heartbeat_seconds=30',
      '--join_seconds=30',
    )
    return [
      programs.start(
        *(*COMMAND, f'--workdir={workdir}'),
        f'--config.data.num_workers={num_workers}',
        *((*cluster, f'--process_id={i}') if count > 1 else ()),
        devices=devices,
      )
      for i in range(count)
    ]

  def finish(self, processes):
    """Waits and returns the exit codes; an unexpected code ends the test."""
    ends = programs.finish(*processes)
    good = GOOD_CODES if len(ends) == 1 else GOOD_CODES_OF_SEVERAL
    for end in ends:
      output = end.stdout + end.stderr
      if end.returncode not in good or 'Traceback' in output:
        raise SystemExit(f'exit code {end.returncode}:\n{output}')
    return [end.returncode for end in ends]

  def disturb(self, processes):
    """Does one thing to running processes, at a random moment."""
    time.sleep(self.rng.uniform(0.5, 15.0))
    event = self.rng.choice(['kill -9', 'SIGTERM', 'SIGINT', 'SIGTERM twice'])
    victims = [process for process in processes if self.rng.random() < 0.5]
    for process in victims or processes[-1:]:
      with contextlib.suppress(ProcessLookupError):
        if event == 'kill -9':
          process.kill()
        elif event == 'SIGINT':
          process.send_signal(signal.SIGINT)
        else:
          process.terminate()
          if event == 'SIGTERM twice':
            time.sleep(self.rng.uniform(0.0, 0.3))
            process.terminate()
    self.events[event] += 1

  def damage(self, workdir):
    """Damages the newest checkpoint, if there is one to go back to."""
    folder = workdir / 'checkpoints'
    steps = []
    if folder.is_dir():
      steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    if len(steps) < 2 or self.rng.random() < 0.7:
      return
    files = [p for p in (folder / str(steps[-1])).rglob('*') if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    event = str(self.rng.choice(['truncated', 'bit flipped', 'half deleted']))
    if event == 'truncated':
      os.truncate(path, path.stat().st_size // 2)
    elif event == 'bit flipped':
      data = bytearray(path.read_bytes())
      data[self.rng.integers(len(data))] ^= 1 << self.rng.integers(8)
      path.write_bytes(data)
    else:
      for path in files[::2]:
        path.unlink()
    self.events[event] += 1

  def round(self, number, size):
    """Makes a run in many lives; returns its workdir and their number.

    Each life has `size`; None: a random one.
    """
    workdir, lives = self.folder / f'round_{number}', 0
    while True:
      its_size = size or SIZES[self.rng.integers(len(SIZES))]
      processes = self.start(workdir, its_size, self.rng.choice([0, 2]))
      lives += 1
      if lives < 12:
        self.disturb(processes)
      if all(code == 0 for code in self.finish(processes)):
        return workdir, lives
      self.damage(workdir)


def compare(workdir, whole, resized):
  """Raises an AssertionError if a run differs from what it should be."""
  names = [p.name for p in (workdir / 'checkpoints').iterdir()]
  assert all(name.isdigit() for name in names), names
  if resized:
    assert_close_runs(workdir, whole, rtol=RTOL)
  else:
    assert_same_run(workdir, whole, ema_decay=0.99)


def main():
  parser = argparse.ArgumentParser(
    description=(__doc__ or '').partition('\n')[0]
  )
  parser.add_argument('--minutes', type=float, default=10.0)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', help='JSON file of the result.')
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)  # Orbax logs much.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ.setdefault('XLA_FLAGS', '')
  folder = pathlib.Path(tempfile.mkdtemp(prefix='soak_'))
  soak = Soak(folder, args.seed)
  wholes = {size: folder / f'whole_{size[0]}' for size in ((1, 1), (2, 1))}
  for size, workdir in wholes.items():
    assert set(soak.finish(soak.start(workdir, size, 0))) == {0}
  rounds, start = [], time.monotonic()
  while time.monotonic() - start < 60 * args.minutes:
    kind, size = list(KINDS.items())[len(rounds) % len(KINDS)]
    workdir, lives = soak.round(len(rounds), size)
    compare(workdir, wholes[size or (1, 1)], resized=size is None)
    rounds.append({'kind': kind, 'starts': lives})
    print(f'round {len(rounds)} ({kind}): {lives} starts, passed')
  result = {
    'seed': args.seed,
    'minutes': round((time.monotonic() - start) / 60, 1),
    'rounds': rounds,
    'events': dict(sorted(soak.events.items())),
  }
  text = json.dumps(result, indent=2) + '\n'
  print(text, end='')
  if args.output:
    write_atomically(args.output, text)
  shutil.rmtree(folder)


if __name__ == '__main__':
  main()
