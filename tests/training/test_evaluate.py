"""Every example counts once."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.notes import Notes
from resnet.errors import InputError
from resnet.training.evaluate import describe, evaluate
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
    found[batch_size] = evaluate(run, steps, run.create_state(), Notes())
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


def test_the_averages_are_evaluated_as_weights_would_be(results):
  config = fake.get_config()
  config.ema_decay = 0.9
  run = experiment.resolve(config)
  steps = jit_steps(run.task, run.sharding)
  state = run.create_state()
  # Averages that are those of other weights, and statistics.
  ema = jax.tree.map(lambda x: 1.5 * x + 0.1, state.ema)
  found = evaluate(run, steps, state.replace(ema=ema), Notes())
  assert found['eval/loss'] == pytest.approx(results[64]['eval/loss'], rel=1e-5)
  alone = evaluate(run, steps, state.replace(**ema, ema=None), Notes())
  for name in ('loss', 'top1', 'top5'):
    assert found[f'eval_ema/{name}'] == alone[f'eval/{name}']
  assert found['eval_ema/loss'] != pytest.approx(found['eval/loss'], rel=0.01)


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
    evaluate(run, Short(), run.create_state(), Notes())


def with_broken(reader, *broken):
  """The reader of a source whose images at some indices are no images."""
  real = reader.source.records

  class Records:
    def __len__(self):
      return len(real)

    def __getitems__(self, keys):
      return [
        {**record, 'image': b'none'} if key in broken else record
        for key, record in zip(keys, real.__getitems__(keys), strict=True)
      ]

  source = dataclasses.replace(reader.source, records=Records())
  return dataclasses.replace(reader, source=source)


@pytest.mark.parametrize('batch_size', [8, 64])
def test_broken_images_do_not_count(batch_size):
  config = fake.get_config()
  config.batch_size = batch_size
  config.data.on_bad_image = 'skip'
  run = experiment.resolve(config)
  broken = with_broken(run.eval_reader, 7, *range(40, 48))
  run = dataclasses.replace(run, eval_reader=broken)
  steps, notes = jit_steps(run.task, run.sharding), Notes(9)
  state = run.create_state()
  result = evaluate(run, steps, state, notes)
  assert (result['eval/num_examples'], result['eval/bad_images']) == (91, 9)
  line = describe(3, result)
  assert line.endswith('(91 images, 9 broken left out)')
  warnings = notes.take()
  assert len(warnings) == 9
  assert warnings[0].startswith('warning: The image of record 7 of fake/test')
  # Each is named once, and counted each time.
  assert evaluate(run, steps, state, notes) == result
  assert notes.take() == []
  with pytest.raises(InputError, match=r'9 broken images .*max_bad_images=8'):
    evaluate(run, steps, state, Notes(8))


def test_the_number_of_broken_images_is_told_only_where_they_may_be(results):
  assert 'eval/bad_images' not in results[64]
  assert describe(3, results[64]).endswith('(100 images)')


def test_nothing_to_evaluate_is_an_error():
  config = fake.get_config()
  config.data.on_bad_image = 'skip'
  config.data.max_bad_images = 1000
  run = experiment.resolve(config)
  broken = with_broken(run.eval_reader, *range(100))
  run = dataclasses.replace(run, eval_reader=broken)
  steps = jit_steps(run.task, run.sharding)
  with pytest.raises(InputError, match='No image of fake/test can be decoded'):
    evaluate(run, steps, run.create_state(), Notes(1000))
