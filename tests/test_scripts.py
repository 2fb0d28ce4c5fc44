"""The scripts of scripts/: linted, and run with stand-ins for their tools."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / 'scripts'
SHELL = sorted([*SCRIPTS.glob('*.sh'), ROOT / '.ci' / 'run'])
# Says how it was called, a line an argument.
RECORDER = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@"\n'


@pytest.fixture
def stand_in(tmp_path):
  """(name, text) -> puts a program on the PATH that is given to `call`."""
  folder = tmp_path / 'bin'
  folder.mkdir()

  def add(name, text=RECORDER):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path

  return add


def call(script, *args, tmp_path, **env):
  return subprocess.run(
    ['bash', str(script), *args],
    env={
      'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
      'HOME': str(tmp_path),
      **env,
    },
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize('path', SHELL, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(path):
  shellcheck = pathlib.Path(sys.executable).parent / 'shellcheck'
  result = subprocess.run(
    [shellcheck, path], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


def test_every_file_is_explained():
  text = (ROOT / 'docs' / 'pods.md').read_text()
  for path in SCRIPTS.iterdir():
    assert f'scripts/{path.name}' in text, path.name


def test_every_config_that_scripts_name_exists():
  for path in SCRIPTS.iterdir():
    for name in re.findall(r'configs/\w+\.py', path.read_text()):
      assert (ROOT / name).exists(), name


TPU = {'NAME': 'pod', 'ZONE': 'us-west4-a'}


def test_tpu_vm_is_created_and_deleted_by_gcloud(stand_in, tmp_path):
  stand_in('gcloud')
  script = SCRIPTS / 'tpu_vm.sh'
  made = call(script, 'create', tmp_path=tmp_path, TYPE='v6e-8', **TPU)
  assert made.returncode == 0, made.stderr
  assert made.stdout.split('\n')[:6] == [
    'gcloud',
    'compute',
    'tpus',
    'tpu-vm',
    'create',
    'pod',
  ]
  assert '--accelerator-type=v6e-8' in made.stdout.split('\n')
  gone = call(script, 'delete', tmp_path=tmp_path, **TPU)
  assert gone.stdout.split('\n')[4:6] == ['delete', 'pod']


# Here the worker is this machine: its home is a folder.
WORKER = (
  '#!/bin/bash\nfor arg in "$@"; do case "$arg" in --command=*)'
  ' cd "$HOME" && exec bash -c "${arg#--command=}";; esac; done\n'
)


def test_tpu_vm_installs_with_a_python_that_is_new_enough(stand_in, tmp_path):
  stand_in('gcloud', WORKER)
  for name in ('git', 'tar', 'make'):
    stand_in(name)
  stand_in(
    'python3',
    '#!/bin/bash\n[[ "$*" == "-m uv python find 3.12" ]] && echo /opt/python\n'
    'exit 0\n',
  )
  pip = tmp_path / 'resnet' / '.venv' / 'bin' / 'pip'
  pip.parent.mkdir(parents=True)
  pip.symlink_to(stand_in('pip'))
  script = SCRIPTS / 'tpu_vm.sh'
  result = call(script, 'install', tmp_path=tmp_path, **TPU)
  assert result.returncode == 0, result.stderr
  lines = result.stdout.split('\n')
  made = lines.index('make')
  assert lines[made + 1 :][:2] == ['PYTHON=/opt/python', '.venv/installed']
  assert lines[lines.index('pip') :][:4] == [
    'pip',
    'install',
    '--quiet',
    'jax[tpu]',
  ]


def test_tpu_vm_runs_on_the_workers_and_stops(stand_in, tmp_path):
  stand_in('gcloud', WORKER)
  python = tmp_path / 'resnet' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/bin/bash\ntrap "echo saved; exit 143" TERM\necho "$@"\n'
    'while true; do sleep 0.1; done\n'
  )
  python.chmod(0o755)
  script = SCRIPTS / 'tpu_vm.sh'
  env = {**TPU, 'CONFIG': 'configs/fake.py', 'WORKDIR': '/shared/run'}
  started = call(script, 'run', tmp_path=tmp_path, **env)
  assert started.returncode == 0, started.stderr
  pid = int((tmp_path / 'resnet' / 'run.pid').read_text())
  log = tmp_path / 'resnet' / 'run.log'
  try:
    _wait_for(lambda: log.exists() and 'main.py' in log.read_text())
    assert log.read_text().split() == [
      'main.py',
      '--distributed',
      '--config=configs/fake.py',
      '--workdir=/shared/run',
    ]
    assert call(script, 'stop', tmp_path=tmp_path, **TPU).returncode == 0
    _wait_for(lambda: 'saved' in log.read_text())
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


def _wait_for(condition):
  for _ in range(100):
    if condition():
      return
    time.sleep(0.1)
  pytest.fail('It did not happen within ten seconds.')


@pytest.mark.parametrize(('status', 'requeued'), [(0, 0), (1, 0), (143, 1)])
def test_slurm_goes_back_into_the_queue_when_it_was_stopped(
  stand_in, tmp_path, status, requeued
):
  stand_in('srun', f'{RECORDER}exit {status}\n')
  stand_in('scontrol')
  result = call(
    SCRIPTS / 'slurm.sh',
    'configs/fake.py',
    '/shared/run',
    '--config.seed=1',
    tmp_path=tmp_path,
    SLURM_SUBMIT_DIR=str(tmp_path),
    SLURM_CPUS_PER_TASK='12',
    SLURM_JOB_ID='17',
  )
  assert result.returncode == status
  lines = result.stdout.split('\n')
  # Else srun would stop the others when one has failed: they would end with
  # 143, and the job go back into the queue for ever.
  assert '--kill-on-bad-exit=0' in lines
  program = lines.index('.venv/bin/python')
  assert lines[program + 1 : program + 6] == [
    'main.py',
    '--distributed',
    '--config=configs/fake.py',
    '--workdir=/shared/run',
    '--config.seed=1',
  ]
  assert lines.count('scontrol') == requeued
  if requeued:
    assert lines[lines.index('scontrol') + 1 :][:2] == ['requeue', '17']


def test_slurm_has_as_many_tasks_as_gpus_on_a_node():
  options = dict(
    re.findall(r'^#SBATCH --([\w-]+)=(\S+)$', _text('slurm.sh'), re.MULTILINE)
  )
  assert options['ntasks-per-node'] == options['gpus-per-node']
  # Time to save: SIGTERM comes before the limit, and main.py needs 30 s.
  assert int(options['signal'].partition('@')[2]) > 30
  assert '\n#SBATCH --requeue\n' in _text('slurm.sh')


def test_xpk_runs_the_image_on_all_workers(stand_in, tmp_path):
  stand_in('xpk')
  env = {'PROJECT': 'p', 'ZONE': 'us-west4-a', 'CLUSTER': 'c', 'NAME': 'run'}
  result = call(
    SCRIPTS / 'gke_xpk.sh',
    'run',
    tmp_path=tmp_path,
    IMAGE='image:tag',
    CONFIG='configs/fake.py',
    WORKDIR='/shared/run',
    **env,
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.split('\n')
  assert lines[:3] == ['xpk', 'workload', 'create']
  assert '--docker-image=image:tag' in lines
  assert '--dry-run' not in lines
  # 143 is one of xpk's own; with 1 end those whose fellow is gone.
  assert '--restart-on-exit-codes=1' in lines
  (command,) = [line for line in lines if line.startswith('--command=')]
  # Without `exec` a shell would take the signal for python.
  assert command.removeprefix('--command=').split() == [
    'exec',
    'python',
    'main.py',
    '--distributed',
    '--config=configs/fake.py',
    '--workdir=/shared/run',
  ]
  dry = call(
    SCRIPTS / 'gke_xpk.sh', 'create', tmp_path=tmp_path, DRY_RUN='1', **env
  )
  assert '--dry-run' in dry.stdout.split('\n')


@pytest.mark.parametrize('name', ['tpu_vm.sh', 'gke_xpk.sh'])
def test_an_unknown_command_is_told_with_those_there_are(name, tmp_path):
  env = {**TPU, 'PROJECT': 'p', 'CLUSTER': 'c'}
  result = call(SCRIPTS / name, 'begin', tmp_path=tmp_path, **env)
  assert result.returncode == 2
  assert 'create|' in result.stderr
  result = call(SCRIPTS / name, 'create', tmp_path=tmp_path)
  assert result.returncode != 0
  assert (
    'ZONE' in result.stderr
    or 'NAME' in result.stderr
    or ('PROJECT' in result.stderr)
  )


def sky(tmp_path, python, *, num_gpus, num_nodes=1, rank=0):
  """Starts the task as SkyPilot does on a machine, with a stand-in for python.

  In an interactive shell, where bash ignores SIGTERM and has job control.
  """
  path = tmp_path / '.venv' / 'bin' / 'python'
  path.parent.mkdir(parents=True)
  path.write_text(f'#!/bin/bash\n{python}\n')
  path.chmod(0o755)
  script = tmp_path / 'run.sh'
  script.write_text(yaml.safe_load(_text('skypilot.yaml'))['run'])
  return subprocess.Popen(
    ['bash', '--norc', '-i', script],
    cwd=tmp_path,
    env={
      'PATH': os.environ['PATH'],
      'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
      'SKYPILOT_NUM_NODES': str(num_nodes),
      'SKYPILOT_NODE_RANK': str(rank),
      'SKYPILOT_NUM_GPUS_PER_NODE': str(num_gpus),
      'CONFIG': 'configs/fake.py',
      'FLAGS': '',
    },
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    start_new_session=True,
  )


def test_skypilot_starts_a_process_a_gpu(tmp_path):
  task = sky(
    tmp_path,
    'echo "$CUDA_VISIBLE_DEVICES $*"',
    num_gpus=4,
    num_nodes=2,
    rank=1,
  )
  out, _ = task.communicate(timeout=60)
  assert task.returncode == 0
  assert sorted(out.split('\n'))[1:] == [
    f'{gpu} main.py --coordinator_address=10.0.0.1:8476 --num_processes=8'
    f' --process_id={4 + gpu} --config=configs/fake.py --workdir=/shared/run'
    for gpu in range(4)
  ]


@pytest.mark.parametrize(
  ('codes', 'expected'), [('3 0', 3), ('0 3 5', 3), ('0 0', 0), ('143', 143)]
)
def test_skypilot_tells_the_first_code_of_a_failure(tmp_path, codes, expected):
  python = f'codes=({codes}); exit ${{codes[CUDA_VISIBLE_DEVICES]}}'
  task = sky(tmp_path, python, num_gpus=len(codes.split()))
  task.communicate(timeout=60)
  assert task.returncode == expected


@pytest.mark.parametrize('num_gpus', [1, 2])
def test_skypilot_waits_until_all_have_saved(tmp_path, num_gpus):
  """It sends SIGTERM to each process by itself, the shell among them.

  A second one would end a process before it has saved.
  """
  python = (
    'trap "((n++))" TERM; n=0\n'
    'echo $$ > $CUDA_VISIBLE_DEVICES.part\n'
    'mv $CUDA_VISIBLE_DEVICES.part $CUDA_VISIBLE_DEVICES.pid\n'
    'until ((n)); do sleep 0.1; done\n'
    'sleep 0.8\n'
    'echo $n > $CUDA_VISIBLE_DEVICES.signals; exit 143'
  )
  task = sky(tmp_path, python, num_gpus=num_gpus)
  paths = [tmp_path / f'{i}.pid' for i in range(num_gpus)]
  _wait_for(lambda: all(path.exists() for path in paths))
  pids = [int(path.read_text()) for path in paths]
  try:
    os.kill(task.pid, signal.SIGTERM)
    time.sleep(0.3)
    for pid in pids:
      os.kill(pid, signal.SIGTERM)
    assert task.wait(timeout=60) == 143
    for path in paths:
      assert path.with_suffix('.signals').read_text() == '1\n'
  finally:
    for pid in (task.pid, *pids):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    task.communicate()


def test_skypilot_starts_again_what_was_stopped():
  task = yaml.safe_load(_text('skypilot.yaml'))
  recovery = task['resources']['job_recovery']
  assert recovery['recover_on_exit_codes'] == [143]
  # Where a machine is gone, those of the others end with 1.
  assert recovery['max_restarts_on_errors'] > 0
  assert task['envs']['NFS'] is None  # To be given.


def test_the_image_holds_all_that_a_run_needs():
  """What `COPY` leaves out, the program must not import or read."""
  lines = _text('Dockerfile').split('\n')
  copied = {line.split()[1] for line in lines if line.startswith('COPY')}
  assert copied == {'requirements.txt', 'main.py', 'configs', 'resnet'}
  for name in copied:
    assert (ROOT / name).exists()


def _text(name):
  return (SCRIPTS / name).read_text()
