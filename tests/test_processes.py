"""Runs of several processes: they compute and end as one process does."""

import os
import re
import shutil
import signal
import socket

import pytest

from resnet.errors import InputError, RunError
from resnet.run import cluster
from resnet.run.checkpoint import Checkpoints
from tests import programs
from tests.programs import ROOT, finish, free_port, wait_until
from tests.runs import assert_close_runs, assert_same_run, series, wait_for_step

FLAGS = (
  *programs.SMALL,
  # Long enough that no run is complete before it is disturbed.
  '--config.num_epochs=10',
  '--config.eval_every_epochs=5',
  '--config.log_every_steps=1',
  '--config.save_every_steps=20',
  '--config.ema_decay=0.9',
  # So low that rounding errors do not grow.
  '--config.schedule.learning_rate=0.001',
)
NUM_STEPS = 80


def slurm_environment(count, index, port):
  return {
    'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(count),
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': str(index),
    'JAX_COORDINATOR_PORT': str(port),
  }


def start(
  count, workdir, *args, own_args=(), own_root=ROOT, slurm=False, **options
):
  """Starts `count` processes of one run.

  The last one runs the code of `own_root`, with `own_args` besides. With
  `slurm` they learn of each other from the environment, as under Slurm.
  """
  port, processes = free_port(), []
  for index in range(count):
    flags = (
      f'--coordinator_address=127.0.0.1:{port}',
      f'--num_processes={count}',
      f'--process_id={index}',
    )
    if slurm:
      flags = ('--distributed',)
      options.update(slurm_environment(count, index, port))
    is_last = index == count - 1
    processes.append(
      programs.start(
        *('main.py', *FLAGS, f'--workdir={workdir}'),
        *(flags if count > 1 else ()),
        *args,
        *(own_args if is_last else ()),
        cwd=own_root if is_last else ROOT,
        **options,
      )
    )
  return processes


def run(*args, **options):
  """Runs processes to the end; returns what process 0 printed."""
  ends = finish(*start(*args, **options))
  for end in ends:
    assert end.returncode == 0, end.stderr
    assert 'Exception ignored' not in end.stderr
  return ends[0].stdout


def assert_codes(ends, *codes):
  assert tuple(end.returncode for end in ends) == codes, ends


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """The workdir of a run of two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  out = run(2, workdir)
  assert f'steps 1 to {NUM_STEPS}, batch 64, 2 x cpu' in out
  assert series(workdir, 'eval/num_examples') == {40: 100, NUM_STEPS: 100}
  return workdir


@pytest.fixture(scope='module')
def four_devices(tmp_path_factory):
  """The workdir of a run of one process with four devices."""
  workdir = tmp_path_factory.mktemp('four_devices') / 'run'
  run(1, workdir, devices=4)
  return workdir


def test_processes_that_differ_all_end_with_the_differences(tmp_path):
  changed = tmp_path / 'changed'
  for name in ('configs', 'resnet'):
    shutil.copytree(ROOT / name, changed / name)
  shutil.copy(ROOT / 'main.py', changed)
  with (changed / 'resnet' / 'errors.py').open('a') as file:
    file.write('# Changed.\n')
  own_args = ('--config.batch_size=32', '--config.seed=7')
  workdir = tmp_path / 'run'
  ends = finish(*start(2, workdir, own_args=own_args, own_root=changed))
  assert_codes(ends, 2, 2)
  for end in ends:
    assert not end.stdout
    assert 'batch_size is 64 in process 0, 32 in process 1' in end.stderr
    assert 'seed is 0 in process 0, 7 in process 1' in end.stderr
    assert re.search(
      r"code is '(\w+)' in process 0, '(?!\1)\w+' in", end.stderr
    )
  assert not workdir.exists()


def join(**flags):
  defaults = {'required': True, 'join_seconds': 1, 'heartbeat_seconds': 30}
  return cluster.join(**{**defaults, **flags})


def test_flags_that_do_not_fit_together_are_refused():
  with pytest.raises(InputError, match='need --coordinator_address=HOST:PORT'):
    join(num_processes=2)
  with pytest.raises(
    InputError, match='--process_id=2 is not one of 2 processes'
  ):
    join(num_processes=2, process_id=2, coordinator_address='127.0.0.1:1')
  with pytest.raises(InputError, match='No TPU pod, Slurm or GKE was found'):
    join()


def test_a_missing_process_is_named_under_slurm(monkeypatch):
  for name, value in slurm_environment(2, 0, free_port()).items():
    monkeypatch.setenv(name, value)
  with pytest.raises(RunError, match=r'Process 1 of 2 .* 1 s .--join_seconds'):
    join()


def interrupt(workdir, *, signalled, victim):
  """Stops some of two processes by a signal, goes on, and kills one."""
  running = start(2, workdir)
  wait_for_step(workdir, 3, *running)
  for index in signalled:
    running[index].send_signal(signal.SIGTERM)
  ends = finish(*running)
  assert_codes(ends, 143, 143)
  stopped = r'Stopped by SIGTERM after step (\d+) of 80'
  (step,) = map(int, re.findall(stopped, ends[0].stdout))
  assert Checkpoints(str(workdir)).latest_step() == step
  assert 'Stopped' not in ends[1].stdout  # Process 0 speaks for both.

  # The end of a process is noticed without waiting for its heartbeat.
  running = start(2, workdir, '--heartbeat_seconds=3600')
  wait_for_step(workdir, step + 3, *running)
  running[victim].kill()
  survivor = finish(*running)[1 - victim]
  assert survivor.returncode == 1, survivor
  assert f'error: Process {victim} ' in survivor.stderr
  assert 'The same commands continue from the newest' in survivor.stderr


@pytest.mark.slow
def test_a_signal_stops_all_and_a_death_ends_the_others(tmp_path):
  interrupt(tmp_path / 'run', signalled=[1], victim=0)


@pytest.mark.slow
def test_a_run_after_a_signal_and_a_death_is_bit_equal(two, tmp_path):
  workdir = tmp_path / 'run'
  interrupt(workdir, signalled=[0, 1], victim=1)
  run(2, workdir)
  assert_same_run(workdir, two, ema_decay=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('count', 'devices', 'slurm'), [(2, 2, False), (4, 1, True)]
)
def test_processes_train_as_one_process_does(
  four_devices, tmp_path, count, devices, slurm
):
  workdir = tmp_path / 'run'
  run(count, workdir, devices=devices, slurm=slurm)
  assert_close_runs(workdir, four_devices, rtol=1e-6)


@pytest.mark.slow
def test_images_on_the_devices_of_two_processes_give_the_same_run(tmp_path):
  """Also in calls of four updates."""
  args = ('--config.data.augment_on=device', '--config.log_every_steps=4')
  run(2, tmp_path / 'plain', *args, devices=2)
  args += ('--config.data.cache=device', '--config.steps_per_call=4')
  out = run(2, tmp_path / 'cached', *args, devices=2)
  assert '612 images (0.1 MB) are on each device' in out
  assert_close_runs(tmp_path / 'cached', tmp_path / 'plain', rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(1, 8), (4, 1)])
def test_a_run_continues_with_other_processes(two, tmp_path, count, devices):
  workdir = tmp_path / 'run'
  shutil.copytree(two, workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(NUM_STEPS))
  out = run(count, workdir, devices=devices)
  assert f'steps 61 to 80, batch 64, {count * devices} x cpu' in out
  assert_close_runs(workdir, two, rtol=1e-5)


@pytest.mark.slow
def test_a_hung_process_is_named(tmp_path):
  running = start(2, tmp_path / 'run', '--heartbeat_seconds=15')
  wait_for_step(tmp_path / 'run', 3, *running)
  running[1].send_signal(signal.SIGSTOP)
  (end,) = finish(running[0])
  running[1].kill()
  finish(running[1])
  assert end.returncode == 1
  (line,) = end.stderr.splitlines()
  assert line.startswith(f'error: Process 1 ({socket.gethostname()}, ')
  assert '(--heartbeat_seconds). The same commands continue' in line


@pytest.mark.slow
def test_a_hung_process_0_is_named_and_signals_work(tmp_path):
  workdir = tmp_path / 'run'
  args = ('--config.batch_size=60', '--heartbeat_seconds=20')
  running = start(3, workdir, *args, keep_programs=False)
  wait_for_step(workdir, 3, *running)
  zero, signalled, other = running
  zero.send_signal(signal.SIGSTOP)

  def has_ended():
    signalled.send_signal(signal.SIGTERM)
    return signalled.poll() is not None

  wait_until(has_ended)
  ends = finish(signalled, other)
  zero.kill()
  finish(zero)
  assert_codes(ends, 143, 1)
  assert 'Stopped at once by a second SIGTERM.' in ends[0].stderr
  assert f'error: Process 0 ({socket.gethostname()}, ' in ends[1].stderr


@pytest.mark.slow
def test_a_signal_while_compiling_stops_after_the_first_step(tmp_path):
  workdir = tmp_path / 'run'
  grace = '--config.preemption_grace_seconds=600'
  running = start(2, workdir, grace, keep_programs=False)
  wait_until((workdir / 'starts.jsonl').exists, *running)
  for process in running:
    process.send_signal(signal.SIGTERM)
  ends = finish(*running)
  assert_codes(ends, 143, 143)
  assert re.search(r'after step [1-4] of 80; it is saved', ends[0].stdout)


@pytest.mark.slow
def test_a_shard_that_one_process_cannot_read_is_set_aside_by_all(tmp_path):
  workdir, whole = tmp_path / 'run', tmp_path / 'whole'
  split = '--config.sharding.fsdp=2'
  run(2, whole, split)
  shutil.copytree(whole, workdir)
  newest = workdir / 'checkpoints' / str(NUM_STEPS)
  own = sorted(newest.rglob('*ocdbt.process_1/d/*'))
  assert own, sorted(newest.rglob('*'))
  for path in own:
    os.truncate(path, path.stat().st_size // 2)
  out = run(2, workdir, split)
  assert f'The checkpoint of step {NUM_STEPS}' in out
  assert (workdir / 'damaged_checkpoints' / str(NUM_STEPS)).is_dir()
  assert_same_run(workdir, whole, ema_decay=0.9)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(tmp_path):
  own_args = (f'--workdir={tmp_path / "b"}',)
  ends = finish(*start(2, tmp_path / 'a', own_args=own_args))
  assert_codes(ends, 2, 2)
  assert 'not the same folder for all 2 processes' in ends[1].stderr


@pytest.mark.slow
def test_bad_input_of_one_process_ends_all_with_its_error(tmp_path):
  """In process 1 an unknown data set, in process 0 a folder that is in use."""
  workdir = tmp_path / 'run'
  running = start(2, workdir, '--config.num_epochs=2000')
  wait_for_step(workdir, 2, *running)
  ends = finish(*start(2, workdir, '--config.num_epochs=2000'))
  assert_codes(ends, 2, 2)
  assert 'is in use by process' in ends[0].stderr
  assert 'error: Process 0 ' in ends[1].stderr
  assert 'is in use by process' in ends[1].stderr
  running[0].terminate()
  assert_codes(finish(*running), 143, 143)

  ends = finish(*start(2, workdir, own_args=('--config.data.name=none',)))
  assert_codes(ends, 2, 2)
  assert re.search(r'error: Process 1 \(.*pid \d+\) ended: ', ends[0].stderr)
  for end in ends:
    assert "'none'" in end.stderr.splitlines()[-1]


CLOSE = """
import os, sys, time
from resnet import output
from resnet.run import cluster
index, port, first, dies = map(int, sys.argv[1:])
mine = cluster.join(
  f'127.0.0.1:{port}', 2, index,
  required=True, join_seconds=600, heartbeat_seconds=5,
)
mine.agree({})
if index != first:
  time.sleep(1)
if index != first and dies:
  os._exit(9)
mine.close(143)
print('closed')
output.exit_immediately(143)
"""


@pytest.mark.parametrize(
  ('first', 'dies', 'expected'),
  [
    (0, False, (143, 143)),
    pytest.param(1, True, (9, 143), marks=pytest.mark.slow),
    pytest.param(0, True, (143, 9), marks=pytest.mark.slow),
  ],
)
def test_the_first_process_that_is_done_waits_for_the_other(
  first, dies, expected
):
  """And ends with its own code where the other one dies meanwhile."""
  args = (free_port(), first, int(dies))
  ends = finish(*(programs.start('-c', CLOSE, i, *args) for i in range(2)))
  assert_codes(ends, *expected)
  if not dies:
    assert [end.stdout for end in ends] == ['closed\n'] * 2
