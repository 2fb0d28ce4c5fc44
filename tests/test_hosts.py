"""Processes on hosts of their own: network namespaces with their addresses.

Needs root on Linux, for namespaces; skipped without.
"""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests import programs
from tests.programs import finish, run_main
from tests.runs import assert_close_runs, series, wait_for_step

BRIDGE = 'resnet-br'
HOSTS = {'resnet-h0': '10.77.0.1', 'resnet-h1': '10.77.0.2'}
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


def ip(*args, check=True):
  return subprocess.run(['ip', *args], check=check, capture_output=True)


def _tear_down():
  for i, host in enumerate(HOSTS):
    ip('link', 'del', f'rn{i}', check=False)
    ip('netns', 'del', host, check=False)
    shutil.rmtree(f'/etc/netns/{host}', ignore_errors=True)
  ip('link', 'del', BRIDGE, check=False)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('hosts')]


@pytest.fixture
def hosts():
  """Two hosts on a switch, each with a name that both can resolve.

  The names are global to this machine, so a lock lets one test at a time use
  them.
  """
  if sys.platform != 'linux' or os.geteuid() or not shutil.which('ip'):
    pytest.skip('needs root on Linux and `ip`, to make network namespaces')
  with open(pathlib.Path(tempfile.gettempdir()) / 'resnet-hosts', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    _tear_down()
    try:
      ip('netns', 'add', 'resnet-try')
      ip('netns', 'del', 'resnet-try')
    except subprocess.CalledProcessError as error:
      pytest.skip(f'needs the right to make network namespaces: {error}')
    _set_up()
    yield
    _tear_down()


def _set_up():
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
    as_host = f'hostname {host} && exec "$@"'
    processes.append(
      programs.start(
        *('main.py', *FLAGS, f'--workdir={workdir}'),
        f'--coordinator_address={HOSTS["resnet-h0"]}:12777',
        *('--num_processes=2', f'--process_id={i}', *args),
        before=(
          *('ip', 'netns', 'exec', host, 'unshare', '--uts'),
          *('sh', '-c', as_host, 'sh'),
        ),
      )
    )
  return processes


def unplug(host):
  index = list(HOSTS).index(host)
  ip('link', 'set', f'rn{index}', 'down')


def test_a_run_continues_after_a_death_and_equals_that_of_one_host(tmp_path):
  workdir, alone = tmp_path / 'run', tmp_path / 'alone'
  running = start(workdir)
  wait_for_step(workdir, 25, *running)
  running[1].kill()
  (zero, _) = finish(*running)
  assert zero.returncode == 1, zero
  assert 'error: Process 1 (resnet-h1, pid ' in zero.stderr
  ends = finish(*start(workdir))
  assert [end.returncode for end in ends] == [0, 0], ends
  assert 'to 80, batch 64, 2 x cpu' in ends[0].stdout

  result = run_main(*FLAGS, f'--workdir={alone}', devices=2)
  assert result.returncode == 0, result.stderr
  assert_close_runs(workdir, alone, rtol=1e-6)
  assert series(workdir, 'eval/num_examples') == {40: 100, 80: 100}


def test_an_unplugged_host_is_named(tmp_path):
  workdir = tmp_path / 'run'
  more = ('--heartbeat_seconds=20', '--config.num_epochs=2000')
  running = start(workdir, *more)
  wait_for_step(workdir, 8, *running)
  unplug('resnet-h1')
  (zero, one) = finish(*running)
  assert zero.returncode == 1, zero
  assert 'error: Process 1 (resnet-h1, pid ' in zero.stderr
  assert 'sent no heartbeat for' in zero.stderr
  assert one.returncode != 0, one
