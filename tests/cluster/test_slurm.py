"""scripts/slurm.sh under Slurm, on three nodes that are this machine.

Those marked `cluster` take minutes: `make test-cluster` runs them.
"""

import os
import re
import signal

import pytest

from tests import programs
from tests.cluster import slurm as slurm_lib
from tests.cluster.slurm import NODES
from tests.programs import wait_until
from tests.runs import assert_close_runs, untimed, wait_for_step

pytestmark = pytest.mark.slow
CONFIG = 'configs/digits.py'
FLAGS = (
  '--config.model.name=cifar_resnet8',
  '--config.model.dtype=float32',
  '--config.model.bn_group_size=32',  # The same for one to three devices.
  '--config.batch_size=96',
  '--config.num_epochs=8',
  '--config.eval_every_epochs=4',
  '--config.log_every_steps=1',
  '--config.save_every_steps=20',
  '--config.ema_decay=0.9',
  # So low, and so few steps, that rounding errors do not grow.
  '--config.schedule.learning_rate=0.002',
)
# Over 40 s: Slurm looks every 30 s for jobs near their time limit.
LONG = (
  '--config.num_epochs=120',
  '--config.eval_every_epochs=40',
  '--config.log_every_steps=5',
  '--config.preemption_grace_seconds=60',
)
DIED = r'error: Process 1 .* has died\. The same commands continue'


@pytest.fixture(scope='module')
def slurm():
  """The cluster; skips where it cannot be started."""
  if reason := slurm_lib.skip_reason():
    pytest.skip(reason)
  with slurm_lib.start() as cluster:
    yield cluster


@pytest.fixture(scope='module')
def alone(tmp_path_factory, data_dir):
  """The workdir of a run of one process without Slurm."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  flags = (f'--config={CONFIG}', f'--workdir={workdir}', *FLAGS)
  result = programs.run_main(*flags, f'--config.data.data_dir={data_dir}')
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.fixture
def submit(slurm, tmp_path, data_dir):
  """(*FLAGS, nodes=2, name='run') -> the number of a job in the folder `name`.

  Its output is in `name`.log, or in the `log` that is given.
  """

  def submit(*args, nodes=2, name='run', log=None):
    flags = (*FLAGS, f'--config.data.data_dir={data_dir}', *args)
    log = tmp_path / (log or f'{name}.log')
    return slurm.submit(CONFIG, tmp_path / name, *flags, nodes=nodes, log=log)

  return submit


@pytest.fixture(scope='module')
def two(slurm, tmp_path_factory, data_dir):
  """The workdir of two tasks that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  flags = (*FLAGS, f'--config.data.data_dir={data_dir}')
  job = slurm.submit(CONFIG, workdir, *flags, nodes=2, log=f'{workdir}.log')
  slurm.wait_for(job, 'COMPLETED')
  return workdir


def assert_ends(slurm, job, log, *states, code='0:0', requeued=()):
  """Asserts how each start ended, and after which codes it was requeued."""
  found = slurm.wait_for(job, states[-1])
  wait_until(lambda: len(slurm.states(job)) >= len(states))
  assert slurm.states(job) == [*states]
  assert found['Restarts'] == str(len(states) - 1)
  assert found['ExitCode'] == code
  codes = re.findall(r'Ended with exit code (\d+); requeued', log.read_text())
  assert codes == [str(code) for code in requeued]


@pytest.mark.parametrize('codes', [[2], [130], [1, 1, 143, 1, 137, 9, 7]])
def test_a_job_is_requeued_by_its_exit_code(slurm, tmp_path, codes):
  """A program takes the place of Python and ends with a code at each start.

  A job that fails is requeued three times; a signal resets the count.
  """
  python, log = tmp_path / '.venv' / 'bin' / 'python', tmp_path / 'log'
  python.parent.mkdir(parents=True)
  words = ' '.join(map(str, codes))
  python.write_text(
    f'#!/bin/bash\ncodes=({words})\n'
    'exit "${codes[${SLURM_RESTART_COUNT:-0}]}"\n'
  )
  python.chmod(0o755)
  job = slurm.submit('config', 'dir', nodes=2, log=log, cwd=tmp_path)
  *requeued, code = codes
  states = (*['PENDING'] * len(requeued), 'FAILED')
  assert_ends(slurm, job, log, *states, code=f'{code}:0', requeued=requeued)


@pytest.mark.cluster
def test_two_and_three_tasks_train_as_one_process_does(
  slurm, alone, two, submit, tmp_path
):
  assert_close_runs(two, alone, rtol=1e-5)
  job = submit(nodes=3)
  log = tmp_path / 'run.log'
  assert_ends(slurm, job, log, 'COMPLETED')
  assert 'batch 96, 3 x cpu' in log.read_text()
  assert_close_runs(tmp_path / 'run', alone, rtol=1e-5)


@pytest.mark.cluster
def test_a_job_continues_after_its_time_limit(slurm, submit, tmp_path):
  job = submit(*LONG)
  wait_for_step(tmp_path / 'run', 5)
  hours, minutes, _ = map(int, slurm.job(job)['RunTime'].split(':'))
  # Between one and two minutes from now; SIGTERM is sent two minutes before.
  limit = 60 * hours + minutes + 2
  slurm.call('scontrol', 'update', f'JobId={job}', f'TimeLimit={limit}')
  slurm.wait_for(job, 'PENDING')
  slurm.call('scontrol', 'update', f'JobId={job}', 'TimeLimit=60')
  log = tmp_path / 'run.log'
  assert_ends(slurm, job, log, 'PENDING', 'COMPLETED', requeued=[143])
  saved = r'Stopped by SIGTERM after step \d+ of \d+; it is saved'
  assert re.search(saved, log.read_text())
  slurm.wait_for(submit(*LONG, name='whole'), 'COMPLETED')
  assert untimed(tmp_path / 'run') == untimed(tmp_path / 'whole')


@pytest.mark.cluster
def test_a_job_continues_after_a_task_was_killed(slurm, two, submit, tmp_path):
  job = submit('--heartbeat_seconds=3600')
  wait_for_step(tmp_path / 'run', 30)
  (task,) = slurm.processes(SLURM_JOB_ID=job, SLURM_PROCID='1')
  os.kill(task, signal.SIGKILL)
  log = tmp_path / 'run.log'
  assert_ends(slurm, job, log, 'PENDING', 'COMPLETED', requeued=[137])
  assert re.search(DIED, log.read_text())
  assert untimed(tmp_path / 'run') == untimed(two)


@pytest.mark.cluster
def test_a_job_continues_after_a_node_went_down(slurm, two, submit, tmp_path):
  job = submit()
  wait_for_step(tmp_path / 'run', 30)
  down = ('scontrol', 'update', f'NodeName={NODES[1]}')
  slurm.call(*down, 'State=DOWN', 'Reason=test')
  assert_ends(slurm, job, tmp_path / 'run.log', 'NODE_FAIL', 'COMPLETED')
  slurm.call(*down, 'State=RESUME')
  assert slurm.job(job)['NodeList'] == '127.0.0.[1,3]'
  assert untimed(tmp_path / 'run') == untimed(two)


@pytest.mark.cluster
def test_a_job_continues_on_fewer_nodes_after_one_died(
  slurm, alone, submit, tmp_path
):
  job = submit(nodes=3)
  wait_for_step(tmp_path / 'run', 30)
  slurm.kill_node(NODES[1])
  slurm.wait_for(job, 'PENDING')
  sizes = ('NumNodes=2', 'NumTasks=2', 'NumCPUs=2')
  slurm.call('scontrol', 'update', f'JobId={job}', *sizes)
  log = tmp_path / 'run.log'
  assert_ends(slurm, job, log, 'NODE_FAIL', 'COMPLETED')
  slurm.start_node(NODES[1])
  assert re.search(DIED, log.read_text())
  assert 'batch 96, 2 x cpu' in log.read_text()
  assert_close_runs(tmp_path / 'run', alone, rtol=1e-5)


def test_a_second_job_in_a_workdir_is_refused_and_scancel_saves(
  slurm, submit, tmp_path
):
  job = submit(*LONG)
  wait_for_step(tmp_path / 'run', 5)
  second = submit(*LONG, nodes=1, log='second.log')
  assert_ends(slurm, second, tmp_path / 'second.log', 'FAILED', code='2:0')
  assert 'is in use by process' in (tmp_path / 'second.log').read_text()
  slurm.call('scancel', job)
  assert_ends(slurm, job, tmp_path / 'run.log', 'CANCELLED', code='0:15')
  assert 'it is saved' in (tmp_path / 'run.log').read_text()
