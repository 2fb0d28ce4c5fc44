"""A data worker is killed, as the kernel does where memory runs out."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.programs import environment

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ('images_per_second', 'data_wait')
ARGS = (
  '--config=configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
  '--config.num_epochs=6',
  '--config.eval_every_epochs=6',
  '--config.log_every_steps=5',
  '--config.save_every_steps=1000',
  '--config.data.prefetch_batches=1',
  '--config.data.num_threads=1',
  # The slower one: a run should not be over before it is disturbed.
  '--config.model.conv_backend=xla',
)


def workers_of(pid):
  """Returns the processes that multiprocessing has spawned from `pid`."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      parent = (folder / 'stat').read_text().rpartition(')')[2].split()[1]
      command = (folder / 'cmdline').read_text()
    except OSError:
      continue
    if int(parent) == pid and 'spawn_main' in command:
      found.append(int(folder.name))
  return found


def train(workdir, data_dir, *args, kills=0):
  """Trains; kills the worker after so many lines of metrics, one each.

  Returns:
    The exit code and what was written to stdout and to stderr.
  """
  lines = []
  with (
    open(f'{workdir}.stderr', 'w+') as stderr,
    subprocess.Popen(
      [sys.executable, 'main.py', *ARGS, f'--workdir={workdir}', *args],
      cwd=ROOT,
      env=environment(TFDS_DATA_DIR=data_dir),
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
    ) as process,
  ):
    for line in process.stdout:
      lines.append(line)
      if kills and line.startswith('step '):
        kills -= 1
        while not (workers := workers_of(process.pid)):
          assert process.poll() is None
          time.sleep(0.01)  # A new one is on its way.
        os.kill(workers[0], signal.SIGKILL)
    code = process.wait(timeout=120)
    stderr.seek(0)
    return code, ''.join(lines), stderr.read()


def metrics(workdir):
  """Returns the lines without what depends on the clock."""
  text = (workdir / 'metrics.jsonl').read_text()
  return [
    {name: value for name, value in line.items() if name not in TIMES}
    for line in map(json.loads, text.splitlines())
  ]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, data_dir):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  code, _, stderr = train(workdir, data_dir)
  assert code == 0, stderr
  return metrics(workdir)


def test_dead_workers_are_replaced(undisturbed, tmp_path, data_dir):
  workdir = tmp_path / 'run'
  options = ('--config.data.num_workers=1',)
  options += ('--config.data.max_worker_restarts=2',)
  code, stdout, stderr = train(workdir, data_dir, *options, kills=2)
  assert code == 0, stderr
  assert stderr == ''
  warnings = [x for x in stdout.splitlines() if x.startswith('warning')]
  assert len(warnings) == 2
  for nth, line in enumerate(warnings, 1):
    assert 'killed by SIGKILL' in line and 'out of memory' in line
    assert f'(restart {nth} of 2)' in line
  assert metrics(workdir) == undisturbed


def test_a_dead_worker_ends_the_run_in_one_line(
  undisturbed, tmp_path, data_dir
):
  workdir = tmp_path / 'run'
  options = ('--config.data.num_workers=1',)
  code, stdout, stderr = train(workdir, data_dir, *options, kills=1)
  assert code == 1
  assert len(stderr.splitlines()) == 1, stderr
  assert stderr.startswith('error: A data worker process was killed by SIGKILL')
  for part in (
    'out of memory',
    '--config.data.num_workers=0',
    '--config.data.max_worker_restarts=',
  ):
    assert part in stderr
  assert 'Traceback' not in stdout
  # What was trained is saved, and the same run goes on in another way.
  code, stdout, stderr = train(workdir, data_dir)
  assert code == 0, stderr
  assert stdout.startswith('Continuing')
  assert metrics(workdir) == undisturbed


def test_workers_do_not_outlive_a_run_that_is_killed(tmp_path, data_dir):
  workdir = tmp_path / 'run'
  more = ('--config.num_epochs=5000', '--config.data.num_workers=2')
  with subprocess.Popen(
    [sys.executable, 'main.py', *ARGS, f'--workdir={workdir}', *more],
    cwd=ROOT,
    env=environment(keep_programs=False, TFDS_DATA_DIR=data_dir),
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    while not process.stdout.readline().startswith('step '):
      assert process.poll() is None
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    # Workers hold the other end of this pipe: it ends with the last of them.
    process.communicate(timeout=30)
  assert not any(_is_alive(pid) for pid in workers)


def _is_alive(pid):
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return text.rpartition(')')[2].split()[0] != 'Z'
