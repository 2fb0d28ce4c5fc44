"""Messages about data workers that died."""

import signal

import pytest

from resnet.data.workers import WorkerDeath
from resnet.errors import RunError

GRAIN = 'Worker process was terminated unexpectedly with exit code {}. Search'


@pytest.mark.parametrize(
  ('code', 'text'),
  [
    (-9, 'SIGKILL'),
    (-11, 'SIGSEGV'),
    (-99, 'signal 99'),
    (1, 'exit code 1'),
  ],
)
def test_the_cause_of_a_death_is_named(code, text):
  death = WorkerDeath.of(RuntimeError(GRAIN.format(code)))
  assert death == WorkerDeath(code)
  assert text in str(death)
  assert ('out of memory' in str(death)) == (code == -9)
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
