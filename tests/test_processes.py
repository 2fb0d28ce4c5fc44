"""Several real processes on one machine: the same numbers, the same end."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
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
  '--config.num_epochs=2.5',
  '--config.eval_every_epochs=1.0',
  '--config.log_every_steps=1',
  '--config.save_every_steps=5',
  '--config.ema_decay=0.9',
  # So low that rounding is not amplified in twenty steps.
  '--config.schedule.learning_rate=0.001',
)
NUM_STEPS, NUM_EVAL_EXAMPLES = 20, 100


def start(
  count,
  workdir,
  *args,
  devices=1,
  own_args=None,
  own_root=ROOT,
  slurm=False,
  keep_programs=True,
):
  """Returns the running processes.

  The last one has arguments `own_args` besides, and the code of `own_root`.
  With `slurm` they are told who they are as Slurm does.
  """
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  processes = []
  for index in range(count):
    cluster = (
      f'--coordinator_address=127.0.0.1:{port}',
      f'--num_processes={count}',
      f'--process_id={index}',
      '--heartbeat_seconds=30',
    )
    env = {}
    if slurm:
      cluster = ('--distributed',)
      env = {
        'SLURM_JOB_ID': '1',
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': str(count),
        'SLURM_PROCID': str(index),
        'SLURM_LOCALID': str(index),
        'JAX_COORDINATOR_PORT': str(port),
      }
    is_last = index == count - 1
    own = own_args if own_args and is_last else ()
    processes.append(
      subprocess.Popen(
        [
          *(sys.executable, 'main.py', *SMALL, f'--workdir={workdir}'),
          *(cluster if count > 1 else ()),
          *args,
          *own,
        ],
        cwd=own_root if is_last else ROOT,
        env=environment(devices=devices, keep_programs=keep_programs, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return processes


def run(*args, expected=0, **options):
  """Runs to the end; returns what process 0 printed."""
  ends = finish(start(*args, **options))
  for code, _, err in ends:
    assert code == expected, err
  return ends[0][1]


def finish(processes):
  """Returns (exit code, stdout, stderr) of each."""
  try:
    ends = [process.communicate(timeout=240) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *end)
    for process, end in zip(processes, ends, strict=True)
  ]


def read(workdir, name):
  """Returns the values of a metric over steps."""
  text = (workdir / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return {line['step']: line[name] for line in lines if name in line}


def assert_same_numbers(workdir, other, rtol):
  for name in ('train/loss', 'eval/loss', 'eval_ema/loss'):
    ours, theirs = read(workdir, name), read(other, name)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(
      list(ours.values()), list(theirs.values()), rtol=rtol
    )
  counts = read(workdir, 'eval/num_examples')
  assert set(counts.values()) == {NUM_EVAL_EXAMPLES}
  assert list(counts) == [8, 16, 20]


def final_state(workdir):
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.ema_decay = 0.9
  config.schedule.learning_rate = 0.001
  checkpoints = Checkpoints(str(workdir))
  assert checkpoints.latest_step() == NUM_STEPS
  target = experiment.resolve(config).abstract_state()
  return checkpoints.restore(NUM_STEPS, target)


def assert_same_run(workdir, other):
  assert_same_numbers(workdir, other, rtol=0)
  for ours, theirs in zip(
    jax.tree.leaves(final_state(workdir)),
    jax.tree.leaves(final_state(other)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def wait_for_step(workdir, step, processes):
  while True:
    assert all(process.poll() is None for process in processes)
    path = workdir / 'metrics.jsonl'
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.02)


def test_processes_that_differ_all_say_so(tmp_path):
  changed = tmp_path / 'changed'
  for name in ('configs', 'resnet'):
    shutil.copytree(ROOT / name, changed / name)
  shutil.copy(ROOT / 'main.py', changed)
  with (changed / 'resnet' / 'errors.py').open('a') as file:
    file.write('# Changed.\n')
  ends = finish(
    start(
      2,
      tmp_path / 'run',
      own_args=('--config.batch_size=32', '--config.seed=7'),
      own_root=changed,
    )
  )
  for code, out, err in ends:
    assert code == 2, err
    assert not out
    assert 'error: The processes differ: batch_size is 64 in process 0' in err
    assert 'batch_size is 64 in process 0, 32 in process 1' in err
    assert 'seed is 0 in process 0, 7 in process 1' in err
    assert re.search(r"code is '(\w+)' in process 0, '(?!\1)\w+' in", err)
  assert not (tmp_path / 'run').exists()


def test_bad_input_of_one_process_ends_all(tmp_path):
  ends = finish(
    start(2, tmp_path / 'run', own_args=('--config.data.name=none',))
  )
  assert [code for code, _, _ in ends] == [2, 2]
  for _, _, err in ends:
    assert "'none'" in err.splitlines()[-1]
  assert re.search(r'error: Process 1 \(.*pid \d+\) ended: ', ends[0][2])


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--num_processes=2',), '--coordinator_address and --process_id are miss'),
    (
      (
        '--num_processes=2',
        '--process_id=2',
        '--coordinator_address=127.0.0.1:1',
      ),
      '--process_id=2 is none of 2 processes: they are 0 to 1',
    ),
    (
      (
        '--num_processes=2',
        '--process_id=0',
        '--coordinator_address=127.0.0.1:PORT',
      ),
      'of --coordinator_address cannot be listened at: Address already in use',
    ),
    (('--distributed',), '--distributed: no TPU pod, Slurm or GKE was found'),
  ],
)
def test_wrong_flags(tmp_path, args, message):
  with socket.create_server(('', 0)) as server:
    port = str(server.getsockname()[1])
    args = [arg.replace('PORT', port) for arg in args]
    ((code, _, err),) = finish(start(1, tmp_path / 'run', *args))
  assert code == 2
  assert message in err
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """(number of devices) -> the workdir of a run of one process."""
  folder = tmp_path_factory.mktemp('one')

  def one(devices):
    workdir = folder / str(devices)
    if not workdir.exists():
      run(1, workdir, devices=devices)
    return workdir

  return one


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """The workdir of a run of two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  out = run(2, workdir)
  assert 'steps 1 to 20, batch 64, 2 x cpu' in out
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2, 4])
@pytest.mark.parametrize('count', [2, 4])
def test_many_processes_learn_what_one_does(one, tmp_path, count, devices):
  workdir = tmp_path / 'run'
  run(count, workdir, devices=devices)
  assert_same_numbers(workdir, one(count * devices), rtol=1e-6)


def test_who_does_not_come_is_named_under_slurm_too(tmp_path):
  here, missing = start(2, tmp_path / 'run', '--join_seconds=4', slurm=True)
  missing.kill()
  ends = finish([here, missing])
  assert ends[0] == (
    1,
    '',
    'error: Process 1 of 2 has not come within 4 s (--join_seconds).\n',
  )


@pytest.mark.slow
def test_under_slurm_they_find_each_other(two, tmp_path):
  workdir = tmp_path / 'run'
  run(2, workdir, slurm=True)
  assert_same_run(workdir, two)


@pytest.mark.slow
@pytest.mark.parametrize('which', [(0,), (1,), (0, 1)])
def test_a_signal_to_one_stops_all_at_the_same_step(two, tmp_path, which):
  workdir = tmp_path / 'run'
  running = start(2, workdir)
  wait_for_step(workdir, 3, running)
  for index in which:
    running[index].send_signal(signal.SIGTERM)
  ends = finish(running)
  assert [code for code, _, _ in ends] == [143, 143], ends
  (step,) = re.findall(r'Stopped by SIGTERM after step (\d+) of 20', ends[0][1])
  assert Checkpoints(str(workdir)).latest_step() == int(step) < NUM_STEPS
  assert 'Stopped' not in ends[1][1]  # Process 0 speaks for both.
  run(2, workdir)
  assert_same_run(workdir, two)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_the_death_of_one_ends_the_others_by_name(two, tmp_path, victim):
  workdir = tmp_path / 'run'
  running = start(2, workdir)
  wait_for_step(workdir, 7, running)
  running[victim].kill()
  killed = time.monotonic()
  code, _, err = finish(running)[1 - victim]
  assert time.monotonic() - killed < 30
  assert code == 1
  assert f'error: Process {victim} ' in err
  assert 'The same commands go on from the newest checkpoint.' in err
  run(2, workdir)
  assert_same_run(workdir, two)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_process_that_stands_still_ends_the_others(tmp_path, victim):
  workdir = tmp_path / 'run'
  running = start(2, workdir, '--heartbeat_seconds=5', keep_programs=False)
  wait_for_step(workdir, 3, running)
  running[victim].send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  other = running[1 - victim]
  try:
    _, err = other.communicate(timeout=60)
  finally:
    running[victim].kill()
    running[victim].communicate()
  assert 5 < time.monotonic() - stopped < 30
  assert other.returncode == 1
  (line,) = err.splitlines()
  assert line.startswith(f'error: Process {victim} ({socket.gethostname()}, ')
  assert '(--heartbeat_seconds). The same commands go on' in line


@pytest.mark.slow
def test_a_second_signal_is_heard_where_process_0_stands_still(tmp_path):
  running = start(2, tmp_path / 'run', keep_programs=False)
  wait_for_step(tmp_path / 'run', 3, running)
  running[0].send_signal(signal.SIGSTOP)
  time.sleep(2.0)
  try:
    for _ in range(2):
      running[1].send_signal(signal.SIGTERM)
      time.sleep(0.5)
    _, err = running[1].communicate(timeout=15)
  finally:
    running[0].kill()
    running[0].communicate()
  assert running[1].returncode == 143
  assert 'Stopped at once by a second SIGTERM.' in err


@pytest.mark.slow
@pytest.mark.parametrize('grace', [1, 60])
def test_a_signal_to_all_while_they_compile(tmp_path, grace):
  """They save after the first steps; without the time for it they do not."""
  workdir = tmp_path / 'run'
  running = start(
    2,
    workdir,
    f'--config.preemption_grace_seconds={grace}',
    '--config.model.name=cifar_resnet32',
    keep_programs=False,
  )
  while not (workdir / 'starts.jsonl').exists():
    time.sleep(0.02)
  for process in running:
    process.send_signal(signal.SIGTERM)
  ends = finish(running)
  assert [code for code, _, _ in ends] == [143, 143], ends
  if grace == 1:
    assert any('Not saved within 1 s of SIGTERM' in err for _, _, err in ends)
  else:
    assert re.search(r'after step [1-4] of 20; it is saved', ends[0][1])


@pytest.mark.slow
def test_a_shard_that_one_process_cannot_read(tmp_path):
  workdir, whole = tmp_path / 'run', tmp_path / 'whole'
  split = '--config.sharding.fsdp=2'
  run(2, whole, split)
  shutil.copytree(whole, workdir)
  (newest,) = (workdir / 'checkpoints').glob(str(NUM_STEPS))
  own = sorted(newest.rglob('*ocdbt.process_1/d/*'))
  assert own, sorted(newest.rglob('*'))
  for path in own:
    os.truncate(path, path.stat().st_size // 2)
  out = run(2, workdir, split)
  assert f'The checkpoint of step {NUM_STEPS}' in out
  assert (workdir / 'damaged_checkpoints' / str(NUM_STEPS)).is_dir()
  assert_same_run(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(1, 1), (1, 8), (4, 1)])
def test_a_run_goes_on_with_other_processes(two, tmp_path, count, devices):
  workdir = tmp_path / 'run'
  shutil.copytree(two, workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(NUM_STEPS))
  step = Checkpoints(str(workdir)).latest_step()
  out = run(count, workdir, devices=devices)
  assert f'steps {step + 1} to 20, batch 64, {count * devices} x cpu' in out
  assert_same_numbers(workdir, two, rtol=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_with_two(one, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(one(1), workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(NUM_STEPS))
  run(2, workdir)
  assert_same_numbers(workdir, one(1), rtol=1e-5)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(tmp_path):
  ends = finish(
    start(2, tmp_path / 'a', own_args=(f'--workdir={tmp_path / "b"}',))
  )
  assert [code for code, _, _ in ends] == [2, 2], ends
  assert 'not the same folder for all 2 processes' in ends[1][2]


@pytest.mark.slow
def test_a_second_run_is_refused_in_all_processes(tmp_path):
  workdir = tmp_path / 'run'
  more = '--config.num_epochs=300'
  running = start(2, workdir, more)
  wait_for_step(workdir, 2, running)
  ends = finish(start(2, workdir, more))
  assert [code for code, _, _ in ends] == [2, 2], ends
  assert 'is in use by process' in ends[0][2]
  assert 'error: Process 0 ' in ends[1][2]
  assert 'is in use by process' in ends[1][2]
  running[0].terminate()
  assert [code for code, _, _ in finish(running)] == [143, 143]


_LEAVE_BY_A_SIGNAL = """
import os, sys, time
from resnet.training import cluster, stop
index, port, dies = map(int, sys.argv[1:])
options = cluster.Options(
  coordinator_address=f'127.0.0.1:{port}', num_processes=2,
  process_id=index, required=True, join_seconds=60, heartbeat_seconds=5,
)
mine = cluster.join(options)
mine.agree({})
if index == dies:
  time.sleep(2.0)
  os._exit(9)
time.sleep(0.0 if dies >= 0 else 3.0 * index)  # Process 0 is done first.
print(mine.close(143))
stop.leave(143)
"""


@pytest.mark.parametrize(
  ('dies', 'expected'), [(-1, [143, 143]), (0, [9, 143]), (1, [143, 9])]
)
def test_one_that_is_done_waits_for_others_and_ends_as_it_should(
  dies, expected
):
  """Also where another one dies meanwhile."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  running = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', _LEAVE_BY_A_SIGNAL),
        *map(str, (index, port, dies)),
      ],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  begin = time.monotonic()
  ends = finish(running)
  assert [code for code, _, _ in ends] == expected, ends
  assert time.monotonic() - begin < 40
  if dies < 0:
    assert [out for _, out, _ in ends] == ['True\n'] * 2
