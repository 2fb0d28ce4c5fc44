"""What a run survives: real processes, real signals, real damage.

One test for each line of the README's table that no other file has.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training.checkpoint import Checkpoints
from tests.programs import environment

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  '--config=configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
  '--config.num_epochs=3',
  '--config.save_every_steps=3',
  '--config.ema_decay=0.99',
  # The slower one: a run should not be over before it is disturbed.
  '--config.model.conv_backend=xla',
)
NUM_STEPS = 24


def command(workdir, *args):
  return [sys.executable, 'main.py', *SMALL, f'--workdir={workdir}', *args]


def start(workdir, *args, before=(), keep_programs=True):
  return subprocess.Popen(
    [*before, *command(workdir, *args)],
    cwd=ROOT,
    env=environment(keep_programs=keep_programs),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def main(workdir, *args, **options):
  with start(workdir, *args, **options) as process:
    out, err = process.communicate(timeout=300)
  return subprocess.CompletedProcess(args, process.returncode, out, err)


def wait_for(path, process):
  """Returns when a file is there."""
  while not path.exists():
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.02)


def lines(workdir):
  """The lines of metrics.jsonl without their rates."""
  return [
    {
      name: value
      for name, value in json.loads(line).items()
      if name not in ('images_per_second', 'data_wait')
    }
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]


def final_state(workdir):
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.num_epochs = 3.0
  config.ema_decay = 0.99
  run = experiment.resolve(config)
  checkpoints = Checkpoints(str(workdir))
  assert checkpoints.latest_step() == NUM_STEPS
  return checkpoints.restore(NUM_STEPS, run.abstract_state())


def assert_same_run(workdir, other):
  assert lines(workdir) == lines(other)
  ours, theirs = final_state(workdir), final_state(other)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)
  names = [path.name for path in (workdir / 'checkpoints').iterdir()]
  assert all(name.isdigit() for name in names), names


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('survival') / 'whole'
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  return workdir


def test_averages_are_evaluated_beside_the_weights(whole):
  evaluations = [line for line in lines(whole) if 'eval/top1' in line]
  assert len(evaluations) == 3
  for line in evaluations:
    assert {'eval_ema/loss', 'eval_ema/top1', 'eval_ema/top5'} < line.keys()
    assert line['eval_ema/loss'] != line['eval/loss']


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_kill_9_at_any_moment_any_number_of_times(whole, tmp_path, seed):
  rng = np.random.default_rng(seed)
  workdir = tmp_path / 'run'
  for _ in range(4):
    with start(workdir, keep_programs=False) as process:
      # A whole run takes about ten seconds, half of them before its first step.
      time.sleep(rng.uniform(2.0, 11.0))
      process.kill()
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert_same_run(workdir, whole)


# The evaluation at step 8 asks for batches 9 and 10.
_KILLED_AT = {
  'evaluating': ('resnet.data.loader', 'DeviceLoader', '__next__', 10),
  'between a line and its save': (
    *('resnet.training.writer', 'MetricsWriter', 'sync'),
    2,
  ),
  'beginning to save': ('orbax.checkpoint', 'CheckpointManager', 'save', 3),
  'writing a checkpoint': (
    *('resnet.training.checkpoint', 'Checkpoints', 'check'),
    2,
  ),
  'waiting for the last': (
    *('resnet.training.checkpoint', 'Checkpoints', 'finish'),
    1,
  ),
}
_KILL = """
import importlib, os, sys
module, owner, name, count = sys.argv.pop(1).split()
owner = getattr(importlib.import_module(module), owner)
real, calls = getattr(owner, name), []
def fatal(self, *args, **options):
  calls.append(None)
  if len(calls) == int(count):
    os.kill(os.getpid(), 9)
  return real(self, *args, **options)
setattr(owner, name, fatal)
sys.argv[0] = 'main.py'
exec(compile(open('main.py').read(), 'main.py', 'exec'))
"""


@pytest.mark.slow
def test_kill_9_where_it_hurts(whole, tmp_path):
  workdir = tmp_path / 'run'
  for place, target in _KILLED_AT.items():
    args = command(workdir)
    args[1:2] = ['-c', _KILL, ' '.join(map(str, target))]
    result = subprocess.run(
      args,
      cwd=ROOT,
      env=environment(keep_programs=False),
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )
    assert result.returncode == -signal.SIGKILL, (place, result.stderr)
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert_same_run(workdir, whole)


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_while_compiling_ends_at_once(tmp_path, number, code):
  workdir = tmp_path / 'run'
  slow = '--config.model.name=cifar_resnet56'
  with start(workdir, slow, keep_programs=False) as process:
    wait_for(workdir / 'starts.jsonl', process)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert time.monotonic() - sent < 5
  assert 'there was nothing to save' in out
  assert 'The same command goes on' in out


def test_a_signal_is_not_lost_and_the_run_goes_on(whole, tmp_path):
  workdir = tmp_path / 'run'
  with start(workdir) as process:
    wait_for(workdir / 'metrics.jsonl', process)
    while not (workdir / 'metrics.jsonl').read_text():
      time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
  assert process.returncode == 143, err
  assert 'it is saved. The same command goes on.' in out
  assert main(workdir).returncode == 0
  assert_same_run(workdir, whole)


def _flip_byte(folder):
  """Flips a bit in the middle of the largest file."""
  path = max(folder.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _truncate(folder):
  path = max(folder.rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  os.truncate(path, path.stat().st_size // 2)


def _delete_half(folder):
  for path in sorted(p for p in folder.rglob('*') if p.is_file())[::2]:
    path.unlink()


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """A run with the checkpoints 18 and 21, killed before its last."""
  workdir = tmp_path_factory.mktemp('stopped') / 'run'
  assert main(workdir).returncode == 0
  shutil.rmtree(workdir / 'checkpoints' / str(NUM_STEPS))
  return workdir


@pytest.mark.parametrize('damage', [_flip_byte, _truncate, _delete_half])
def test_a_damaged_checkpoint_is_set_aside(whole, stopped, tmp_path, damage):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  newest = max(map(int, os.listdir(workdir / 'checkpoints')))
  damage(workdir / 'checkpoints' / str(newest))
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert f'warning: The checkpoint of step {newest}' in result.stdout
  assert (workdir / 'damaged_checkpoints' / str(newest)).is_dir()
  assert_same_run(workdir, whole)


def test_an_older_checkpoint_without_its_metrics_is_set_aside(
  whole, stopped, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  # The best one stays when others go; it is older than the newest.
  best = Checkpoints(str(workdir)).best_step()
  assert best < max(map(int, os.listdir(workdir / 'checkpoints')))
  path = workdir / 'checkpoints' / str(best) / 'metrics' / 'metrics'
  path.write_bytes(path.read_bytes()[:10])
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert f'warning: The checkpoint of step {best}' in result.stdout
  assert (workdir / 'damaged_checkpoints' / str(best)).is_dir()
  assert lines(workdir) == lines(whole)


def test_without_a_whole_checkpoint_nothing_begins_anew(stopped, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  for folder in (workdir / 'checkpoints').iterdir():
    _flip_byte(folder)
  for _ in range(2):  # The second time there is none to be damaged.
    before = (workdir / 'metrics.jsonl').read_bytes()
    result = main(workdir)
    assert result.returncode == 2
    assert 'no whole checkpoint left' in result.stderr
    assert (workdir / 'metrics.jsonl').read_bytes() == before


# Mounts a small disk of its own at $1, then runs the rest there.
_ON_A_DISK = (
  'unshare',
  '--user',
  '--map-root-user',
  '--mount',
  'sh',
  '-c',
)


def _can_mount():
  script = 'mount -t tmpfs none /mnt'
  result = subprocess.run(
    [*_ON_A_DISK, script], capture_output=True, check=False
  )
  return result.returncode == 0


needs_mount = pytest.mark.skipif(
  sys.platform != 'linux' or not shutil.which('unshare') or not _can_mount(),
  reason='needs the right to mount',
)


def on_a_disk(script):
  return subprocess.run(
    [*_ON_A_DISK, script],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@needs_mount
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path):
  # Room for some checkpoints of about 2 MB, then filled up to the last page.
  script = f"""
    mount -t tmpfs -o size=40m none {tmp_path} && cd {ROOT}
    (
      until [ -d {tmp_path}/run/checkpoints/3 ]; do sleep 0.02; done
      cat /dev/zero > {tmp_path}/fill 2> {os.devnull}
    ) &
    {' '.join(command(tmp_path / 'run', '--config.num_epochs=200'))}
    code=$?
    tail -c 1 {tmp_path}/run/metrics.jsonl | od -c | head -1
    rm {tmp_path}/fill
    echo checkpoints: $(ls {tmp_path}/run/checkpoints)
    exit $code
  """
  result = on_a_disk(script)
  assert result.returncode == 1, result.stdout + result.stderr
  # Orbax's threads have their say before.
  error = result.stderr.splitlines()[-1]
  assert error.startswith('error: ')
  assert 'o space left' in error
  assert 'the same command goes on' in error
  assert re.search(r'^0000000 +\\n$', result.stdout, re.MULTILINE)
  assert re.search(r'^checkpoints: .*\d', result.stdout, re.MULTILINE)


@needs_mount
def test_a_folder_that_becomes_read_only_ends_the_run(tmp_path):
  script = f"""
    mount -t tmpfs -o size=100m none {tmp_path} && cd {ROOT}
    (
      until [ -d {tmp_path}/run/checkpoints/3 ]; do sleep 0.02; done
      mount --bind {tmp_path} {tmp_path}
      mount -o remount,ro,bind {tmp_path}
    ) &
    {' '.join(command(tmp_path / 'run', '--config.num_epochs=100'))}
  """
  result = on_a_disk(script)
  assert result.returncode == 1, result.stdout + result.stderr
  (error,) = result.stderr.splitlines()
  assert error.startswith('error: A checkpoint could not be written to ')
  assert 'Read-only file system' in error
  assert 'warning: A checkpoint could not be written' in result.stdout


@contextlib.contextmanager
def run_that_hangs(workdir, *args):
  """A run whose only worker has been stopped."""
  more = (
    '--config.num_epochs=500',
    '--config.data.num_workers=1',
    '--config.eval_every_epochs=500',
    '--config.save_every_steps=4000',
  )
  with start(workdir, *more, *args) as process:
    wait_for(workdir / 'metrics.jsonl', process)
    while not (workdir / 'metrics.jsonl').read_text():
      time.sleep(0.05)
    children = subprocess.check_output(
      ['ps', '-ww', '--ppid', str(process.pid), '-o', 'pid=,args='], text=True
    )
    for line in children.splitlines():
      if 'spawn_main' in line:
        os.kill(int(line.split()[0]), signal.SIGSTOP)
    yield process


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_to_the_workers_too_is_the_runs(tmp_path, number, code):
  """A terminal and a scheduler send it to all processes of a group."""
  workdir = tmp_path / 'run'
  more = ('--config.num_epochs=500', '--config.data.num_workers=1')
  with start(workdir, *more, before=['setsid']) as process:
    wait_for(workdir / 'metrics.jsonl', process)
    while not (workdir / 'metrics.jsonl').read_text():
      time.sleep(0.05)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
  assert process.returncode == code, err
  assert 'it is saved. The same command goes on.' in out
  assert not err


def test_a_second_signal_ends_at_once(tmp_path):
  with run_that_hangs(tmp_path / 'run') as process:
    time.sleep(1.0)  # What was read ahead is used up.
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(2.0)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
  assert time.monotonic() - sent < 5
  assert process.returncode == 143
  assert 'Stopped at once by a second SIGTERM.' in err


def test_the_grace_period_ends(tmp_path):
  more = '--config.preemption_grace_seconds=3'
  with run_that_hangs(tmp_path / 'run', more) as process:
    time.sleep(1.0)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
  assert 3 <= time.monotonic() - sent < 8
  assert process.returncode == 130
  assert 'Not saved within 3 s of SIGINT (preemption_grace_seconds).' in err


def test_a_worker_that_hangs_is_noticed(tmp_path):
  workdir = tmp_path / 'run'
  with run_that_hangs(workdir, '--config.watchdog_seconds=5') as process:
    out, err = process.communicate(timeout=120)
  assert process.returncode == 1, out + err
  assert 'waiting for batch' in err
  (stacks,) = workdir.glob('stacks_*.txt')
  assert 'loop.py' in stacks.read_text()


_HANGING_SAVE = """
import sys, time
import orbax.checkpoint as ocp
save = ocp.CheckpointManager.save
def hang(self, step, *args, **options):
  if step == 6:
    time.sleep(1000)
  return save(self, step, *args, **options)
ocp.CheckpointManager.save = hang
sys.argv[0] = 'main.py'
exec(compile(open('main.py').read(), 'main.py', 'exec'))
"""


def test_a_save_that_hangs_is_noticed(tmp_path):
  workdir = tmp_path / 'run'
  result = subprocess.run(
    [
      *(sys.executable, '-c', _HANGING_SAVE, *SMALL),
      *(f'--workdir={workdir}', '--config.watchdog_seconds=3'),
    ],
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert result.returncode == 1, result.stdout + result.stderr
  assert 'error: saving step 6 has hung for' in result.stderr
  assert 'goes on from the newest checkpoint' in result.stderr
  (stacks,) = workdir.glob('stacks_*.txt')
  assert 'in hang' in stacks.read_text()
  assert main(workdir).returncode == 2  # The config is another.
  resumed = main(
    workdir, '--config.watchdog_seconds=600', '--allow_config_change'
  )
  assert resumed.returncode == 0, resumed.stderr
  assert 'steps 4 to 24' in resumed.stdout


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
  workdir = tmp_path / 'run'
  with start(workdir, '--config.num_epochs=500') as first:
    wait_for(workdir / 'starts.jsonl', first)
    second = main(workdir, '--config.num_epochs=500')
    assert second.returncode == 2, second.stdout + second.stderr
    assert f'in use by process {first.pid} on ' in second.stderr
    first.kill()
  # The lock of the killed one is stale.
  with start(workdir, '--config.num_epochs=500') as third:
    assert 'cifar_resnet8 on fake' in third.stdout.readline()
    third.kill()


def test_updates_that_are_not_finite_are_skipped_and_end_the_run(tmp_path):
  workdir = tmp_path / 'run'
  hot = (
    '--config.schedule.learning_rate=1e30',
    '--config.max_bad_steps=4',
    '--config.save_every_steps=1',
  )
  result = main(workdir, *hot)
  assert result.returncode == 1, result.stdout + result.stderr
  assert 'not finite in 4 steps in a row' in result.stderr
  bad = [
    json.loads(line)
    for line in (workdir / 'bad_steps.jsonl').read_text().splitlines()
  ]
  assert [line['in_row'] for line in bad] == [1, 2, 3, 4]
  assert len(bad[-1]['records']) == 64
  checkpoints = Checkpoints(str(workdir))
  config = fake.get_config()
  config.ema_decay = 0.99
  config.data.image_size = config.data.eval_resize = 8
  config.schedule.learning_rate = 1e30
  state = checkpoints.restore(
    checkpoints.latest_step(), experiment.resolve(config).abstract_state()
  )
  for leaf in jax.tree.leaves(state):
    assert np.all(np.isfinite(leaf))
  replay = main(workdir, *hot, '--mode=replay')
  assert replay.returncode == 0, replay.stderr
  assert f'Step {bad[-1]["step"]}, from the checkpoint' in replay.stdout
  assert 'of the gradients are not finite' in replay.stdout
  assert '64 of 64 losses are not finite' in replay.stdout


def test_safe_fields_may_change_on_demand(stopped, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(stopped, workdir)
  more = '--config.keep_checkpoints=1'
  result = main(workdir, more)
  assert result.returncode == 2
  assert 'keep_checkpoints: 3 there, 1 now' in result.stderr
  assert '--allow_config_change' in result.stderr
  result = main(workdir, more, '--allow_config_change')
  assert result.returncode == 0, result.stderr
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['config']['keep_checkpoints'] == 1
  other = ('--config.seed=1', '--allow_config_change')
  result = main(workdir, more, *other)
  assert result.returncode == 2
  assert 'seed: 0 there, 1 now' in result.stderr


@pytest.mark.parametrize('gone', ['folder', 'content'])
def test_a_run_whose_checkpoints_are_missing_does_not_begin_anew(
  whole, tmp_path, gone
):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / 'checkpoints')
  if gone == 'content':
    (workdir / 'checkpoints').mkdir()
  before = (workdir / 'metrics.jsonl').read_bytes()
  result = main(workdir)
  assert result.returncode == 2, result.stdout
  assert f'has come to step {NUM_STEPS}, but holds no checkp' in result.stderr
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_damaged_metrics_of_a_complete_run(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  step = min(map(int, os.listdir(workdir / 'checkpoints')))
  assert step < NUM_STEPS
  for path in (workdir / 'checkpoints').glob('*/metrics/metrics'):
    if path.parts[-3] != str(NUM_STEPS):
      path.write_text('{')
      step = path.parts[-3]
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert f'warning: The checkpoint of step {step}' in result.stdout
  assert 'is complete: nothing to do' in result.stdout


def test_a_complete_run_whose_last_checkpoint_is_damaged(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  assert 'is complete: nothing to do' in main(workdir).stdout
  _flip_byte(workdir / 'checkpoints' / str(NUM_STEPS))
  result = main(workdir)
  assert result.returncode == 0, result.stderr
  assert f'warning: The checkpoint of step {NUM_STEPS}' in result.stdout
  assert_same_run(workdir, whole)
