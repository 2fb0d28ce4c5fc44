"""Every example counts once."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.training.evaluate import evaluate
from resnet.training.step import jit_steps


@pytest.fixture(scope='module')
def results():
  """Evaluations of one state with several batch sizes."""
  found = {}
  for batch_size in (8, 24, 64, 512):
    config = fake.get_config()
    config.batch_size = batch_size
    run = experiment.resolve(config)
    steps = jit_steps(run.task, run.sharding)
    found[batch_size] = evaluate(run, steps, run.create_state())
  return found


def test_any_batch_size_gives_the_same(results):
  for result in results.values():
    assert result == pytest.approx(results[64], rel=1e-5)


def test_the_result_is_that_of_numpy(results):
  run = experiment.resolve(fake.get_config())
  state = run.create_state()
  reader = dataclasses.replace(run.eval_reader, batch_size=100, row_count=100)
  batch = reader(0)
  logits = np.asarray(
    run.task.model.apply(
      state.variables, run.task.normalize(batch['image']), train=False
    ),
    np.float64,
  )
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  ranks = np.argsort(-logits, axis=1)
  hits = ranks == batch['label'][:, None]
  expected = {
    'eval/loss': -log_probs[np.arange(100), batch['label']].mean(),
    'eval/top1': hits[:, 0].mean(),
    'eval/top5': hits[:, :5].any(1).mean(),
    'eval/num_examples': 100,
  }
  assert results[24] == pytest.approx(expected, rel=1e-4)


def test_a_wrong_count_is_an_error():
  run = experiment.resolve(fake.get_config())
  steps = jit_steps(run.task, run.sharding)

  class Short:
    evaluate = staticmethod(
      lambda variables, sums, batch: steps.evaluate(
        variables, sums, {**batch, 'mask': jax.numpy.zeros_like(batch['mask'])}
      )
    )

  with pytest.raises(RuntimeError, match='Evaluated 0 of the 100 examples'):
    evaluate(run, Short(), run.create_state())
