"""What a run survives: signals, kills, damage, full disks, dead workers.

One test for each line of the table in docs/training.md that no other file has.
What ends a process happens in one of its own, at a call that the test names, so
that no test depends on the speed of the machine. How a run continues is seen in
this process: both have eight devices, and results are compared bit for bit.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from resnet.data.host.loader import DeviceLoader
from resnet.errors import InputError, RunError
from resnet.run import bad_steps
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
from tests.programs import ROOT, assert_refused, run, start
from tests.runs import as_flags, assert_same_run, final_state, resolve

CHANGES = {
  'data__image_size': 8,
  'data__eval_resize': 8,
  'save_every_steps': 3,
  'keep_checkpoints': 10,
  'ema_decay': 0.99,
}
NUM_STEPS = 16  # Checkpoints at 3, 6, 8, 9, 12, 15 and 16.
# Workers that are hardly ahead of the run, so that their end is soon noticed.
WORKER = {
  'data__num_workers': 1,
  'data__num_threads': 1,
  'data__prefetch_batches': 1,
}


def command(workdir, **changes):
  return [*as_flags(**{**CHANGES, **changes}), f'--workdir={workdir}']


def train(workdir, *, allow_config_change=False, **changes):
  return run_lib.train(
    resolve(**{**CHANGES, **changes}),
    str(workdir),
    start_time=0.0,
    allow_config_change=allow_config_change,
  )


# Calls of these are counted; the first batches are those of training.
BATCH = 'resnet.data.host.loader', 'DeviceLoader', '__next__'
CHECK = 'resnet.run.checkpoint', 'Checkpoints', 'check'
FINISH = 'resnet.run.checkpoint', 'Checkpoints', 'finish'
SYNC = 'resnet.run.metrics_file', 'MetricsWriter', 'sync'
SAVE = 'orbax.checkpoint', 'CheckpointManager', 'save'
EXIT_ON_SIGNAL = 'resnet.run.stopping', 'StopSignal', 'exit_on_signal'

KILL = 'os.kill(os.getpid(), signal.SIGKILL)'
HANG = 'time.sleep(10_000)'


def at_call(number, method, action):
  """Returns arguments of Python: main.py with an action in some method call."""
  module, owner, name = method
  script = (
    'import multiprocessing, os, runpy, signal, threading, time\n'
    f'from {module} import {owner}\n'
    f'real, calls = {owner}.{name}, []\n'
    'def at_call(self, *args, **options):\n'
    '  calls.append(None)\n'
    f'  if len(calls) == {number}:\n'
    f'    {action}\n'
    '  return real(self, *args, **options)\n'
    f'{owner}.{name} = at_call\n'
    'runpy.run_path("main.py", run_name="__main__")\n'
  )
  return '-c', script


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The workdir of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('survival') / 'whole'
  train(workdir)
  return workdir


def assert_continued(workdir, whole):
  """Asserts the same end as that of `whole`, and nothing half written."""
  assert_same_run(workdir, whole, **CHANGES)
  assert Checkpoints(str(workdir)).latest_step() == NUM_STEPS
  names = os.listdir(workdir / 'checkpoints')
  assert all(name.isdigit() for name in names), names


def test_a_killed_run_continues_bit_for_bit_and_leaves_no_workers(
  whole, tmp_path
):
  workdir = tmp_path / 'run'
  action = f'print(len(multiprocessing.active_children()), flush=True); {KILL}'
  # While the checkpoint of step 6 is written. `run` returns when nobody holds
  # its pipes any more, so the workers have ended too.
  args = command(workdir, **{**WORKER, 'data__num_workers': 2})
  result = run(*at_call(2, CHECK, action), *args, devices=8)
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert result.stdout.splitlines()[-1] == '2'
  train(workdir)
  assert_continued(workdir, whole)


@pytest.mark.slow
def test_a_run_killed_at_many_places_continues_bit_for_bit(whole, tmp_path):
  workdir = tmp_path / 'run'
  for place in (
    (10, BATCH),  # In the evaluation of step 8.
    (2, SYNC),  # Between a line and its save.
    (3, SAVE),
    (1, FINISH),  # While the last one is waited for.
  ):
    result = run(*at_call(*place, KILL), *command(workdir), devices=8)
    assert result.returncode == -signal.SIGKILL, (place, result.stderr)
  train(workdir)
  assert_continued(workdir, whole)


def test_a_run_stopped_by_signals_continues_bit_for_bit(whole, tmp_path):
  """A terminal and a scheduler signal all processes of the run's group."""
  workdir, step = tmp_path / 'run', 0
  args = command(workdir, data__num_workers=1)
  for name, code in (('SIGTERM', 143), ('SIGINT', 130), ('SIGHUP', 129)):
    action = f'os.killpg(0, signal.{name})'
    # Where the tests run under `nohup`, SIGHUP would be ignored.
    before = ('env', '--default-signal=HUP', 'setsid')
    result = run(*at_call(5, BATCH, action), *args, before=before, devices=8)
    assert (result.returncode, result.stderr) == (code, '')
    assert f', steps {step + 1} to {NUM_STEPS},' in result.stdout
    end = rf'Stopped by {name} after step (\d+) of 16; it is saved'
    step = int(re.search(end, result.stdout)[1])
    assert Checkpoints(str(workdir)).latest_step() == step
  train(workdir)
  assert_continued(workdir, whole)


def test_a_run_continues_without_its_terminal(whole, tmp_path):
  """SIGHUP is ignored as at the start, and nobody reads what is printed."""
  action = (
    'os.kill(os.getpid(), signal.SIGHUP); ends = os.pipe();'
    ' os.close(ends[0]); os.dup2(ends[1], 1)'
  )
  args = command(tmp_path / 'run')
  result = run(*at_call(5, BATCH, action), *args, before=('nohup',), devices=8)
  assert result.returncode == 0, result.stderr
  assert 'Traceback' not in result.stderr
  assert_continued(tmp_path / 'run', whole)


def test_a_signal_while_compiling_ends_the_run_at_once(tmp_path):
  action = 'threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()'
  args = command(tmp_path / 'run', model__name='cifar_resnet56')
  # The second call begins the first step, which takes many seconds to compile.
  result = run(*at_call(2, EXIT_ON_SIGNAL, action), *args, keep_programs=False)
  assert result.returncode == 143, result.stderr
  assert 'Stopped by SIGTERM; there was nothing to save.' in result.stdout
  assert 'The same command continues.' in result.stdout
  assert 'First step done' not in result.stdout


@pytest.mark.parametrize(
  ('signals', 'grace', 'code', 'message'),
  [
    ((15, 15), 600.0, 143, 'Stopped at once by a second SIGTERM.'),
    ((2,), 1.0, 130, 'Not saved within 1 s of SIGINT (preemption_grace_sec'),
  ],
  ids=['second signal', 'grace'],
)
def test_a_run_that_hangs_ends_by_a_second_signal_or_after_the_grace(
  tmp_path, signals, grace, code, message
):
  action = f'[os.kill(os.getpid(), n) for n in {signals}]; {HANG}'
  args = command(tmp_path / 'run', preemption_grace_seconds=grace)
  result = run(*at_call(5, BATCH, action), *args, devices=8)
  assert result.returncode == code, result.stderr
  assert message in result.stderr


def _largest(folder):
  files = (path for path in folder.rglob('*') if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def _flip_bit(folder):
  path = _largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _truncate(folder):
  path = _largest(folder)
  os.truncate(path, path.stat().st_size // 2)


def _delete_half(folder):
  for path in sorted(p for p in folder.rglob('*') if p.is_file())[::2]:
    path.unlink()


@pytest.fixture
def complete(whole, tmp_path):
  """A copy of a complete run."""
  return shutil.copytree(whole, tmp_path / 'run')


@pytest.fixture
def stopped(complete):
  """The same without its last checkpoint; the best is older than the newest."""
  shutil.rmtree(complete / 'checkpoints' / str(NUM_STEPS))
  checkpoints = Checkpoints(str(complete))
  assert (checkpoints.best_step(), checkpoints.latest_step()) == (8, 15)
  return complete


@pytest.mark.parametrize(
  'damage',
  [
    _flip_bit,
    pytest.param(_truncate, marks=pytest.mark.slow),
    pytest.param(_delete_half, marks=pytest.mark.slow),
  ],
)
def test_a_damaged_newest_checkpoint_is_set_aside(
  whole, stopped, capsys, damage
):
  damage(stopped / 'checkpoints' / '15')
  train(stopped)
  out = capsys.readouterr().out
  assert 'warning: The checkpoint of step 15' in out
  assert f', steps 13 to {NUM_STEPS},' in out
  assert (stopped / 'damaged_checkpoints' / '15').is_dir()
  assert_continued(stopped, whole)


@pytest.mark.slow
def test_a_complete_run_with_damaged_checkpoints(whole, complete, capsys):
  (complete / 'checkpoints' / '8' / 'metrics' / 'metrics').write_text('{')
  assert train(complete).was_complete
  assert 'warning: The checkpoint of step 8' in capsys.readouterr().out
  _flip_bit(complete / 'checkpoints' / str(NUM_STEPS))
  assert not train(complete).was_complete
  assert f'checkpoint of step {NUM_STEPS}' in capsys.readouterr().out
  assert_continued(complete, whole)


def test_a_run_without_an_intact_checkpoint_does_not_start_again(stopped):
  for folder in (stopped / 'checkpoints').iterdir():
    _truncate(folder)
  before = (stopped / 'metrics.jsonl').read_bytes()
  for _ in range(2):  # The second time there is none to be damaged.
    with pytest.raises(InputError, match='no intact checkpoint left'):
      train(stopped)
  message = f'has reached step {NUM_STEPS}, but holds no checkpoint'
  for folder in ('damaged_checkpoints', 'checkpoints'):
    shutil.rmtree(stopped / folder)
    with pytest.raises(InputError, match=message):
      train(stopped)
  assert (stopped / 'metrics.jsonl').read_bytes() == before


# Mounts a small disk of its own; then `$@` is the command of the run.
ON_A_DISK = ('unshare', '--user', '--map-root-user', '--mount', 'sh', '-c')


def _can_mount():
  script = 'mount -t tmpfs none /mnt'
  result = subprocess.run(
    [*ON_A_DISK, script], capture_output=True, check=False
  )
  return result.returncode == 0


needs_mount = pytest.mark.skipif(
  sys.platform != 'linux' or not shutil.which('unshare') or not _can_mount(),
  reason='needs the right to mount a file system by `unshare --user --mount`',
)


def run_on_a_disk(folder, megabytes, disturb, after=''):
  """Trains for long on a disk which is disturbed after the first checkpoint."""
  script = f"""
    mount -t tmpfs -o size={megabytes}m none {folder} && cd {ROOT}
    (
      while [ ! -d {folder}/run/checkpoints/3 ] && kill -0 $$
      do sleep 0.02; done
      {disturb}
    ) 2> {os.devnull} &
    "$@"
    code=$?
    {after}
    exit $code
  """
  args = command(folder / 'run', num_epochs=1000.0)
  return run('main.py', *args, before=(*ON_A_DISK, script, 'sh'), devices=8)


@needs_mount
def test_shared_memory_that_cannot_be_written_is_named(tmp_path):
  script = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
  before = (*ON_A_DISK, script, 'sh')
  result = run('main.py', *command(tmp_path / 'run'), before=before, devices=8)
  assert_refused(result, '/dev/shm', 'Read-only', '--shm-size=')
  assert not (tmp_path / 'run').exists()


@needs_mount
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path):
  # Filled up to the last page.
  result = run_on_a_disk(
    tmp_path,
    40,
    disturb=f'cat /dev/zero > {tmp_path}/fill',
    after=f"""
      tail -c 1 {tmp_path}/run/metrics.jsonl | od -c | head -1
      rm {tmp_path}/fill
      echo checkpoints: $(ls {tmp_path}/run/checkpoints)
    """,
  )
  assert result.returncode == 1, result.stdout + result.stderr
  # Orbax's threads may write before.
  error = result.stderr.splitlines()[-1]
  assert error.startswith('error: ')
  assert 'o space left' in error
  assert 'the same command continues' in error
  assert re.search(r'^0000000 +\\n$', result.stdout, re.MULTILINE)
  assert re.search(r'^checkpoints: .*\d', result.stdout, re.MULTILINE)


@needs_mount
def test_a_folder_that_becomes_read_only_ends_the_run(tmp_path):
  disturb = f"""
    mount --bind {tmp_path} {tmp_path}
    mount -o remount,ro,bind {tmp_path}
  """
  result = run_on_a_disk(tmp_path, 100, disturb)
  assert result.returncode == 1, result.stdout + result.stderr
  (error,) = result.stderr.splitlines()
  assert error.startswith('error: A checkpoint could not be written to ')
  assert 'Read-only file system' in error
  assert 'warning: A checkpoint could not be written' in result.stdout


def test_a_worker_that_hangs_ends_the_run(tmp_path):
  workdir = tmp_path / 'run'
  stop = 'for p in multiprocessing.active_children(): os.kill(p.pid, 19)'
  more = {'num_epochs': 50.0, 'eval_every_epochs': 50.0, **WORKER}
  more |= {'save_every_steps': 1000, 'watchdog_seconds': 3.0}
  result = run(*at_call(4, BATCH, stop), *command(workdir, **more), devices=8)
  assert result.returncode == 1, result.stdout + result.stderr
  assert 'error: waiting for batch' in result.stderr
  (stacks,) = workdir.glob('stacks_*.txt')
  assert 'loop.py' in stacks.read_text()


@pytest.mark.slow
def test_a_second_run_in_a_workdir_is_refused(whole, tmp_path):
  workdir = tmp_path / 'run'
  wait = at_call(2, BATCH, f'print("waits", flush=True); {HANG}')
  with start(*wait, *command(workdir), devices=8) as first:
    assert any(line == 'waits\n' for line in first.stdout)
    with pytest.raises(InputError, match=f'in use by process {first.pid} on '):
      train(workdir)
    first.kill()
  train(workdir)  # The lock of the killed one counts no more.
  assert_continued(workdir, whole)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(whole, tmp_path, monkeypatch, capsys):
  calls, real = [], DeviceLoader.__next__

  def patched(self):
    calls.append(None)
    # The second and the ninth of training; three were of an evaluation.
    if len(calls) in (2, 12):
      workers = multiprocessing.active_children()
      assert workers
      for process in workers:
        os.kill(process.pid, signal.SIGKILL)
    return real(self)

  monkeypatch.setattr(DeviceLoader, '__next__', patched)
  train(tmp_path, data__max_worker_restarts=2, **WORKER)
  out = capsys.readouterr().out
  warnings = [line for line in out.splitlines() if line.startswith('warning')]
  assert len(warnings) == 2
  for nth, line in enumerate(warnings, 1):
    assert 'killed by SIGKILL' in line and 'out of memory' in line
    assert f'(restart {nth} of 2)' in line
  assert_continued(tmp_path, whole)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_one_line(whole, tmp_path):
  workdir = tmp_path / 'run'
  kill = 'for p in multiprocessing.active_children(): p.kill()'
  args = command(workdir, save_every_steps=1000, **WORKER)
  result = run(*at_call(2, BATCH, kill), *args, devices=8)
  assert result.returncode == 1, result.stdout
  (error,) = result.stderr.splitlines()
  assert error.startswith('error: A data worker process was killed by SIGKILL')
  for part in (
    'out of memory',
    '--config.data.num_workers=0',
    '--config.data.max_worker_restarts=',
  ):
    assert part in error
  assert 'Traceback' not in result.stdout
  # What was trained is saved, and the same run continues without workers.
  assert 0 < Checkpoints(str(workdir)).latest_step() < NUM_STEPS
  train(workdir, allow_config_change=True)
  assert_continued(workdir, whole)


def test_updates_that_are_not_finite_are_skipped_and_end_the_run(
  tmp_path, capsys
):
  hot = {
    'schedule__learning_rate': 1e30,
    'max_bad_steps': 4,
    'save_every_steps': 1,
  }
  with pytest.raises(RunError, match='not finite in 4 steps in a row'):
    train(tmp_path, **hot)
  text = (tmp_path / 'bad_steps.jsonl').read_text()
  bad = [json.loads(line) for line in text.splitlines()]
  assert [line['in_row'] for line in bad] == [1, 2, 3, 4]
  assert len(bad[-1]['records']) == 64
  for leaf in jax.tree.leaves(final_state(tmp_path, **CHANGES)):
    assert np.all(np.isfinite(leaf))
  capsys.readouterr()
  assert (
    bad_steps.replay(resolve(**{**CHANGES, **hot}), str(tmp_path), None) == 0
  )
  out = capsys.readouterr().out
  assert f'Step {bad[-1]["step"]}, from the checkpoint' in out
  assert 'of the gradients are not finite' in out
  assert '64 of 64 losses are not finite' in out


def test_fields_that_leave_the_weights_alone_may_change_on_demand(stopped):
  with pytest.raises(InputError, match='keep_checkpoints: 10 there, 1') as info:
    train(stopped, keep_checkpoints=1)
  assert '--allow_config_change' in str(info.value)
  train(stopped, keep_checkpoints=1, allow_config_change=True)
  saved = json.loads((stopped / 'config.json').read_text())
  assert saved['config']['keep_checkpoints'] == 1
  with pytest.raises(InputError, match='seed: 0 there, 1 now'):
    train(stopped, keep_checkpoints=1, seed=1, allow_config_change=True)
