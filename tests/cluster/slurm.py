"""A Slurm cluster on this machine: a controller and three nodes."""

from collections.abc import Iterator
import contextlib
import getpass
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any

from tests import programs
from tests.programs import ROOT, wait_until

# JAX looks up the name of the first node, so each node is named after an
# address of this machine.
NODES = ('127.0.0.1', '127.0.0.2', '127.0.0.3')
SCRIPT = ROOT / 'scripts' / 'slurm.sh'
# Debian's folder of daemons is not on every user's PATH.
_PATH = f'{os.environ["PATH"]}:/usr/sbin'
# Each node has a GPU by name, with any file as its device. A requeued job waits
# for as long as credentials are valid (120 s by default).
_CONFIG = """
ClusterName=resnet
SlurmctldHost=localhost
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=30
ReturnToService=1
KillWait=120
GresTypes=gpu
PartitionName=all Nodes={names} Default=YES
"""


def skip_reason() -> str | None:
  """Returns what is missing for a cluster, or None."""
  tools = ('munged', 'slurmctld', 'slurmd', 'sbatch')
  missing = [tool for tool in tools if not shutil.which(tool, path=_PATH)]
  if missing:
    return f"needs Debian's slurm-wlm and munge: no {', '.join(missing)}"
  if not (ROOT / '.venv' / 'bin' / 'python').exists():
    return 'needs .venv, where scripts/slurm.sh finds Python'
  return None


@contextlib.contextmanager
def start() -> Iterator['Slurm']:
  """Yields a running cluster; no process or file of it is left at the end."""
  with tempfile.TemporaryDirectory(prefix='resnet-slurm-') as folder:
    slurm = Slurm(pathlib.Path(folder))
    try:
      slurm.start()
      yield slurm
    finally:
      slurm.stop()
  assert not slurm.processes()
  assert not slurm.folder.exists()


class Slurm:
  """The cluster, with its configuration, state and logs in a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    # All processes of the cluster inherit it; `processes` finds them by it.
    self._mark = {'SLURM_CONF': str(folder / 'slurm.conf')}
    self._daemons: dict[str, subprocess.Popen[bytes]] = {}

  def start(self) -> None:
    """Starts all daemons; returns once the nodes are idle."""
    folder, names = self.folder, ','.join(NODES)
    (folder / 'munge.key').write_bytes(os.urandom(128))
    (folder / 'munge.key').chmod(0o400)
    (folder / 'gres.conf').write_text(
      f'NodeName={names} Name=gpu File=/dev/null\n'
    )
    config = _CONFIG.format(
      folder=folder,
      names=names,
      port=programs.free_port(),
      user=getpass.getuser(),
    )
    for name in NODES:
      config += f'NodeName={name} Port={programs.free_port()} CPUs=1 Gres=gpu\n'
    (folder / 'slurm.conf').write_text(config)
    flags = {'socket': 'socket', 'pid-file': 'pid', 'log-file': 'log'}
    flags.update({'key-file': 'key', 'seed-file': 'seed'})
    self._start(
      *('munged', '--foreground', '--force'),
      *(f'--{flag}={folder}/munge.{end}' for flag, end in flags.items()),
    )
    wait_until((folder / 'munge.socket').exists, self._daemons['munged'])
    self._start('slurmctld', '-D')
    for name in NODES:
      self.start_node(name)
    wait_until(
      lambda: (
        self.call('sinfo', '-h', '-o', '%T %D', check=False).split()
        == ['idle', str(len(NODES))]
      ),
      *self._daemons.values(),
    )

  def start_node(self, name: str) -> None:
    """Starts the daemon of a node."""
    self._start('slurmd', '-D', '-N', name, log=name)

  def _start(self, *command: str, log: str | None = None) -> None:
    name = log or command[0]
    with (self.folder / f'{name}.log').open('ab') as file:
      self._daemons[name] = subprocess.Popen(
        command,
        env={**os.environ, 'PATH': _PATH, **self._mark},
        stdout=file,
        stderr=file,
      )

  def call(self, *command: Any, check: bool = True, **options: Any) -> str:
    """Returns what a command of Slurm prints; options are those of `run`."""
    env = programs.environment(**self._mark, **options.pop('env', {}))
    result = subprocess.run(
      [str(part) for part in command],
      env=env,
      capture_output=True,
      text=True,
      check=False,
      **options,
    )
    assert not check or result.returncode == 0, result.stderr
    return result.stdout

  def submit(self, *args: Any, nodes: int, log: Any, **options: Any) -> str:
    """Submits scripts/slurm.sh, a task per node; returns the job's number."""
    sizes = {'ntasks-per-node': 1, 'gpus-per-node': 1, 'cpus-per-task': 1}
    flags = {**sizes, 'nodes': nodes, 'time': 60, 'output': log}
    return self.call(
      *('sbatch', '--parsable'),
      *(f'--{name}={value}' for name, value in flags.items()),
      *(SCRIPT, *args),
      **{'cwd': ROOT, **options},
    ).strip()

  def job(self, number: str) -> dict[str, str]:
    """Returns the fields of a job."""
    return _fields(self.call('scontrol', '--oneliner', 'show', 'job', number))

  def wait_for(self, number: str, state: str) -> dict[str, str]:
    """Returns the fields of a job once it is in this state."""

    def reached() -> bool:
      time.sleep(0.5)  # Each look starts a process.
      job = self.job(number)
      end = job['JobState'] in ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT')
      assert not end or job['JobState'] == state, job
      return job['JobState'] == state

    wait_until(reached)
    return self.job(number)

  def states(self, number: str) -> list[str]:
    """Returns the state in which each start of a job ended."""
    jobs = map(_fields, (self.folder / 'jobs').read_text().splitlines())
    return [job['JobState'] for job in jobs if job['JobId'] == number]

  def processes(self, **variables: str) -> list[int]:
    """Returns the cluster's processes with these environment variables."""
    wanted = {
      f'{k}={v}'.encode() for k, v in {**self._mark, **variables}.items()
    }
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
      with contextlib.suppress(OSError):
        if wanted <= set(path.read_bytes().split(b'\0')):
          found.append(int(path.parent.name))
    return found

  def kill_node(self, name: str) -> None:
    """Kills the daemon of a node and all that runs there."""
    tasks = self.processes(SLURMD_NODENAME=name)
    steps = {_parent(task) for task in tasks} & {*self.processes()}
    self._daemons[name].kill()
    _kill(*steps, *tasks)
    self._daemons[name].wait()

  def stop(self) -> None:
    """Kills all processes of the cluster."""
    while found := self.processes():
      _kill(*found)
      for daemon in self._daemons.values():
        daemon.wait()


def _fields(line: str) -> dict[str, str]:
  return dict(re.findall(r'(\S+?)=(\S*)', line))


def _parent(pid: int) -> int:
  status = pathlib.Path(f'/proc/{pid}/status').read_text()
  return int(re.findall(r'PPid:\s+(\d+)', status)[0])


def _kill(*pids: int) -> None:
  for pid in pids:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)
