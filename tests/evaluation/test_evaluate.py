"""Every example counts once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.data.host.warnings import DataWarnings
from resnet.errors import InputError
from resnet.evaluation.evaluate import describe, evaluate
from resnet.training.step import jit_steps
from tests.data.in_memory import encode, smooth_image
from tests.runs import tiny, with_broken_images


def make(batch_size, **changes):
  """Returns an experiment, its steps and its first state."""
  run = tiny(batch_size=batch_size, **changes)
  return run, jit_steps(run.task, run.sharding), run.create_state()


@pytest.fixture(scope='module')
def made():
  """Evaluates the 100 images in batches of 24: the last one is padded."""
  # Not in training: what is evaluated is the plain cross entropy.
  return make(24, loss__label_smoothing=0.1)


@pytest.fixture(scope='module')
def result(made):
  return evaluate(*made, DataWarnings())


def test_result_equals_numpy_for_any_batch_size(made, result):
  run, _, state = made
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
  assert result == pytest.approx(expected, rel=1e-4)
  assert evaluate(*make(512), DataWarnings()) == pytest.approx(result, rel=1e-5)
  # Of broken images nothing is said where they may not be.
  assert describe(3, result).endswith('(100 images)')


def test_two_classes_have_no_top5(tmp_path):
  for split in ('train', 'val'):
    for name in ('ant', 'bee'):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(4):
        data = encode(smooth_image(16, 16), 'PNG')
        (tmp_path / split / name / f'{i}.png').write_bytes(data)
  data = {'data__name': 'folder', 'data__data_dir': str(tmp_path)}
  made = make(8, data__eval_split='validation', **data)
  found = evaluate(*made, DataWarnings())
  assert list(found) == ['eval/loss', 'eval/top1', 'eval/num_examples']
  assert 'top5' not in describe(3, found)


def test_moving_averages_are_evaluated_like_weights(result):
  run, steps, state = make(24, ema_decay=0.9)
  # Averages that are those of other weights, and statistics.
  ema = jax.tree.map(lambda x: 1.5 * x + 0.1, state.ema)
  matrices, averaged = [], state.replace(ema=ema)
  found = evaluate(
    run, steps, averaged, DataWarnings(), on_confusion=matrices.append
  )
  assert found['eval/loss'] == pytest.approx(result['eval/loss'], rel=1e-5)
  alone = evaluate(run, steps, state.replace(**ema, ema=None), DataWarnings())
  for name in ('loss', 'top1', 'top5'):
    assert found[f'eval_ema/{name}'] == alone[f'eval/{name}']
  # The matrix is that of the averages, which choose the best checkpoint.
  (matrix,) = matrices
  assert matrix.sum() == 100
  assert np.trace(matrix) == round(100 * found['eval_ema/top1'])
  assert found['eval_ema/loss'] != pytest.approx(found['eval/loss'], rel=0.01)


def test_a_wrong_count_is_an_error(made):
  run, steps, state = made

  def mask_all(variables, sums, batch):
    batch = {**batch, 'mask': jnp.zeros_like(batch['mask'])}
    return steps.evaluate(variables, sums, batch)

  with pytest.raises(RuntimeError, match='Evaluated 0 of the 100 examples'):
    evaluate(
      run, dataclasses.replace(steps, evaluate=mask_all), state, DataWarnings()
    )


def test_broken_images_do_not_count(made):
  skipping = tiny(
    batch_size=24, data__on_bad_image='skip', data__max_bad_images=1000
  )

  def broken(*indices):
    reader = with_broken_images(skipping.eval_reader, *indices)
    return dataclasses.replace(made[0], eval_reader=reader)

  _, steps, state = made
  run, warnings = broken(7, *range(40, 48)), DataWarnings(9)
  result = evaluate(run, steps, state, warnings)
  assert (result['eval/num_examples'], result['eval/bad_images']) == (91, 9)
  line = describe(3, result)
  assert line.endswith('(91 images, 9 broken left out)')
  lines = warnings.take()
  assert len(lines) == 9
  assert lines[0].startswith('warning: The image of record 7 of fake/test')
  # Each is named once, and counted each time.
  assert evaluate(run, steps, state, warnings) == result
  assert warnings.take() == []
  with pytest.raises(InputError, match=r'9 broken images .*max_bad_images=8'):
    evaluate(run, steps, state, DataWarnings(8))
  with pytest.raises(InputError, match='No image of fake/test can be decoded'):
    evaluate(broken(*range(100)), steps, state, DataWarnings(1000))
