"""What is said of workers that died."""

import signal

import pytest

from resnet.data.workers import WorkerDeath
from resnet.errors import RunError

GRAIN = 'Worker process was terminated unexpectedly with exit code {}. Search'


@pytest.mark.parametrize(
  ('code', 'text', 'is_memory'),
  [
    (-9, 'was killed by SIGKILL, most likely', True),
    (-11, 'was killed by SIGSEGV', False),
    (-99, 'was killed by signal 99', False),
    (1, 'ended with exit code 1', False),
  ],
)
def test_death_is_told(code, text, is_memory):
  death = WorkerDeath.of(RuntimeError(GRAIN.format(code)))
  assert death == WorkerDeath(code)
  assert text in str(death)
  assert ('out of memory' in str(death)) == is_memory


def test_other_errors_are_not_taken_for_a_death():
  assert WorkerDeath.of(RuntimeError('exit code 3')) is None


def test_the_end_says_what_to_type():
  death = WorkerDeath(-signal.SIGKILL)
  error = death.final(0, 4)
  assert isinstance(error, RunError)
  assert '--config.data.num_workers=3' in str(error)
  assert '--config.data.max_worker_restarts=10' in str(error)
  assert 'after 2 restarts' in str(death.final(2, 4))
  assert '(restart 2 of 5)' in death.restarted(2, 5, 7)
  assert 'from batch 8' in death.restarted(2, 5, 7)
