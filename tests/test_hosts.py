"""Processes on hosts of their own: network namespaces with their addresses.

Needs root on Linux, for namespaces; skipped without.
"""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from tests.programs import environment

ROOT = pathlib.Path(__file__).parent.parent
BRIDGE = 'resnet-br'
HOSTS = {'resnet-h0': '10.77.0.1', 'resnet-h1': '10.77.0.2'}
SMALL = (
  '--config=configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
  '--config.num_epochs=2.5',
  '--config.log_every_steps=1',
  '--config.save_every_steps=4',
  # So low that rounding is not amplified in twenty steps.
  '--config.schedule.learning_rate=0.001',
)


def ip(*args, check=True):
  return subprocess.run(['ip', *args], check=check, capture_output=True)


def _tear_down():
  for i, host in enumerate(HOSTS):
    ip('link', 'del', f'rn{i}', check=False)
    ip('netns', 'del', host, check=False)
    shutil.rmtree(f'/etc/netns/{host}', ignore_errors=True)
  ip('link', 'del', BRIDGE, check=False)


def _can_make_hosts():
  if sys.platform != 'linux' or os.geteuid() or not shutil.which('ip'):
    return False
  name = f'resnet-try{os.getpid()}'
  can = ip('netns', 'add', name, check=False).returncode == 0
  ip('netns', 'del', name, check=False)
  return can


pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not _can_make_hosts(), reason='needs the right to make network namespaces'
  ),
]


@pytest.fixture
def hosts():
  """Two hosts on a switch, each with a name that both can resolve.

  Their names are those of the machine: one test at a time has them.
  """
  with open(pathlib.Path(tempfile.gettempdir()) / 'resnet-hosts', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    _set_up()
    yield
    _tear_down()


def _set_up():
  _tear_down()
  ip('link', 'add', BRIDGE, 'type', 'bridge')
  ip('link', 'set', BRIDGE, 'up')
  for i, (host, address) in enumerate(HOSTS.items()):
    ip('netns', 'add', host)
    peer = ('peer', 'name', 'eth0', 'netns', host)
    ip('link', 'add', f'rn{i}', 'type', 'veth', *peer)
    ip('link', 'set', f'rn{i}', 'master', BRIDGE, 'up')
    inside = ('netns', 'exec', host, 'ip')
    ip(*inside, 'addr', 'add', f'{address}/24', 'dev', 'eth0')
    ip(*inside, 'link', 'set', 'eth0', 'up')
    ip(*inside, 'link', 'set', 'lo', 'up')
    folder = pathlib.Path('/etc/netns') / host
    folder.mkdir(parents=True, exist_ok=True)
    names = ''.join(f'{address} {name}\n' for name, address in HOSTS.items())
    (folder / 'hosts').write_text(f'127.0.0.1 localhost\n{names}')


def start(workdir, *args):
  """Starts main.py on each host."""
  processes = []
  for i, host in enumerate(HOSTS):
    command = (
      *(sys.executable, 'main.py', *SMALL, f'--workdir={workdir}'),
      f'--coordinator_address={next(iter(HOSTS.values()))}:12777',
      *('--num_processes=2', f'--process_id={i}', *args),
    )
    as_host = f'hostname {host} && exec "$@"'
    processes.append(
      subprocess.Popen(
        [
          *('ip', 'netns', 'exec', host, 'unshare', '--uts'),
          *('sh', '-c', as_host, 'sh', *command),
        ],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return processes


def finish(processes):
  try:
    ends = [process.communicate(timeout=240) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *end)
    for process, end in zip(processes, ends, strict=True)
  ]


def unplug(host):
  index = list(HOSTS).index(host)
  ip('link', 'set', f'rn{index}', 'down')


def wait_for_step(workdir, step, processes):
  metrics = workdir / 'metrics.jsonl'
  while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
    assert all(process.poll() is None for process in processes)
    time.sleep(0.02)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of a run of one process with as many devices."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  subprocess.run(
    [sys.executable, 'main.py', *SMALL, f'--workdir={workdir}'],
    cwd=ROOT,
    env=environment(devices=2),
    check=True,
    capture_output=True,
  )
  return workdir


def assert_same_numbers(workdir, other):
  for name in ('train/loss', 'eval/loss', 'eval/num_examples'):
    values = []
    for folder in (workdir, other):
      text = (folder / 'metrics.jsonl').read_text()
      lines = [json.loads(line) for line in text.splitlines()]
      values.append({x['step']: x[name] for x in lines if name in x})
    ours, theirs = values
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(
      list(ours.values()), list(theirs.values()), rtol=1e-6
    )
  assert set(ours.values()) == {100}


@pytest.mark.usefixtures('hosts')
def test_two_hosts_learn_what_one_process_does(alone, tmp_path):
  ends = finish(start(tmp_path / 'run'))
  assert [code for code, _, _ in ends] == [0, 0], ends
  assert 'steps 1 to 20, batch 64, 2 x cpu' in ends[0][1]
  assert_same_numbers(tmp_path / 'run', alone)


@pytest.mark.usefixtures('hosts')
@pytest.mark.parametrize('victim', [0, 1])
def test_the_same_commands_go_on_after_a_death(alone, tmp_path, victim):
  workdir = tmp_path / 'run'
  running = start(workdir, '--heartbeat_seconds=20')
  wait_for_step(workdir, 7, running)
  running[victim].kill()
  killed = time.monotonic()
  code, _, err = finish(running)[1 - victim]
  assert time.monotonic() - killed < 20
  assert code == 1, err
  assert f'error: Process {victim} (resnet-h{victim}, pid ' in err
  ends = finish(start(workdir))
  assert [code for code, _, _ in ends] == [0, 0], ends
  assert_same_numbers(workdir, alone)


@pytest.mark.usefixtures('hosts')
def test_a_host_that_cannot_be_reached_is_named(tmp_path):
  unplug('resnet-h1')
  (zero, one) = finish(start(tmp_path / 'run', '--join_seconds=8'))
  assert zero[0] == one[0] == 1, (zero, one)
  assert 'error: Process 1 of 2 has not come within 8 s' in zero[2]
  assert 'error: Process 0 cannot be reached at 10.77.0.1:12777' in one[2]
  assert not (tmp_path / 'run').exists()


@pytest.mark.usefixtures('hosts')
def test_a_host_whose_cable_is_pulled_is_named(tmp_path):
  workdir = tmp_path / 'run'
  more = ('--heartbeat_seconds=20', '--config.num_epochs=2000')
  running = start(workdir, *more)
  wait_for_step(workdir, 8, running)
  unplug('resnet-h1')
  (zero, one) = finish(running)
  assert zero[0] == 1, zero
  assert 'error: Process 1 (resnet-h1, pid ' in zero[2]
  assert 'has not been heard of for' in zero[2]
  assert one[0] != 0, one
