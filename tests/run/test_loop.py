"""The run: what it writes, and that it resumes as if never interrupted."""

import dataclasses
import json
import signal
import sys

import pytest

from resnet import experiment
from resnet.errors import InputError
from resnet.plots.curves import save_curves
from resnet.run import loop
from resnet.run import run as run_lib
from resnet.run.checkpoint import Checkpoints
from resnet.run.initialize import evaluate_checkpoint
from tests import runs
from tests.runs import at_batch, read_metrics, with_broken_images

NUM_STEPS = 16


def resolve(**changes):
  return runs.tiny(save_every_steps=3, **changes)


def train(workdir, run=None, **changes):
  run = run or resolve(**changes)
  return run_lib.train(run, str(workdir), start_time=0.0, draw=save_curves)


def assert_same_run(workdir, other):
  runs.assert_same_run(workdir, other, resolve())


def times(workdir):
  return {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run: its folder, outcome and compiled functions."""
  workdir = tmp_path_factory.mktemp('whole')
  with runs.compilations() as compiled:
    outcome = train(workdir)
  return workdir, outcome, [name for _, name in compiled]


def test_a_run_for_wandb_is_refused_without_the_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(InputError, match='type pip install wandb'):
    train(tmp_path / 'run', wandb='photos')
  assert not list(tmp_path.iterdir())


def test_a_run_compiles_each_step_once_and_ends_with_an_evaluation(whole):
  workdir, outcome, compiled = whole
  for name in ('jit(train_step)', 'jit(eval_step)'):
    assert compiled.count(name) == 1
  assert outcome.step == NUM_STEPS
  assert outcome.signal is None
  assert not outcome.was_complete
  assert outcome.images_per_second > 0
  assert outcome.metrics['eval/num_examples'] == 100
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved['config']['batch_size'] == 64
  assert saved['derived']['num_steps'] == NUM_STEPS
  assert list(workdir.glob('events.out.tfevents.*'))
  assert not [p for p in workdir.rglob('*') if 'tmp' in p.name]


def test_metrics_lines_are_as_documented(whole):
  lines = read_metrics(whole[0])
  train_lines = [line for line in lines if 'train/loss' in line]
  eval_lines = [line for line in lines if 'eval/loss' in line]
  assert [line['step'] for line in train_lines] == [4, 8, 12, 16]
  assert [line['step'] for line in eval_lines] == [8, 16]
  names = ('train/loss', 'train/top1', 'learning_rate', *runs.TIMES)
  for line in train_lines:
    assert set(line) == {'step', 'epoch', *names}
    assert line['epoch'] == line['step'] / 8
    assert 0 <= line['train/top1'] <= 1
    assert 0 <= line['data_wait'] <= 1
  # The rate falls to a tenth after one epoch.
  rates = [line['learning_rate'] for line in train_lines]
  assert rates == pytest.approx([0.025, 0.025, 0.0025, 0.0025])
  names = ('loss', 'top1', 'top5', 'num_examples')
  assert set(eval_lines[0]) == {'step', 'epoch', *(f'eval/{x}' for x in names)}


def test_a_run_that_crashed_and_was_stopped_resumes_bit_for_bit(
  whole, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    at_batch(patch, 6, RuntimeError('crash'))
    with pytest.raises(RuntimeError, match='crash'):
      train(tmp_path)
  assert Checkpoints(str(tmp_path)).latest_step() == 3
  with monkeypatch.context() as patch:
    # Step 11: five of training until the evaluation and its three batches.
    at_batch(patch, 11)
    outcome = train(tmp_path)
  assert (outcome.signal, outcome.step) == (signal.SIGTERM, 11)
  assert Checkpoints(str(tmp_path)).latest_step() == 11
  # How the data are read may change.
  outcome = train(tmp_path, data__num_workers=2)
  assert outcome.signal is None
  assert_same_run(tmp_path, whole[0])


# The evaluations ask for three batches: two, and the end.
@pytest.mark.parametrize(
  ('number', 'step'), [(10, 8), pytest.param(20, 16, marks=pytest.mark.slow)]
)
def test_an_evaluation_interrupted_by_a_signal_is_made_after_resuming(
  whole, tmp_path, monkeypatch, number, step
):
  """The first of two evaluations is cut off, or the last one."""
  with monkeypatch.context() as patch:
    at_batch(patch, number)
    outcome = train(tmp_path)
  assert outcome.signal == signal.SIGTERM
  assert outcome.metrics is None
  assert outcome.step == Checkpoints(str(tmp_path)).latest_step() == step
  assert not (tmp_path / 'curves.png').exists()

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    # A kill between the line of the evaluation and the checkpoint with it.
    patch.setattr(Checkpoints, 'add_metrics', killed)
    with pytest.raises(KeyboardInterrupt):
      train(tmp_path)
  assert train(tmp_path).metrics == whole[1].metrics
  assert_same_run(tmp_path, whole[0])
  assert train(tmp_path).was_complete


def test_a_complete_run_is_left_alone_but_for_missing_curves(whole):
  workdir, outcome, _ = whole
  before = times(workdir)
  again = train(workdir)
  assert again.was_complete
  assert again.metrics == outcome.metrics
  assert times(workdir) == before
  curves = (workdir / 'curves.png').read_bytes()
  (workdir / 'curves.png').unlink()
  assert train(workdir).was_complete
  assert (workdir / 'curves.png').read_bytes() == curves


def test_another_config_and_other_data_are_refused_and_nothing_is_written(
  whole, monkeypatch
):
  workdir, _, _ = whole
  before = times(workdir)
  with pytest.raises(InputError, match='seed: 0 there, 1 now'):
    train(workdir, seed=1)
  real = experiment.Experiment.derived
  monkeypatch.setattr(
    experiment.Experiment,
    'derived',
    lambda self: {**real(self), 'num_train_examples': 513},
  )
  with pytest.raises(InputError, match='num_train_examples: 512 there, 513'):
    train(workdir)
  assert times(workdir) == before


def test_checkpoints_without_a_config_are_refused_and_not_touched(tmp_path):
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  with pytest.raises(InputError, match=r'no config\.json'):
    train(tmp_path)
  assert [p.name for p in tmp_path.rglob('*')] == ['checkpoints', '5']


def test_the_best_checkpoint_and_the_last_ones_are_kept(tmp_path, monkeypatch):
  top1 = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.4, 0.1, 0.2])
  others = {'eval/loss': 0.0, 'eval/top5': 1.0, 'eval/num_examples': 100}
  monkeypatch.setattr(
    loop, 'evaluate', lambda *_, **__: {'eval/top1': next(top1), **others}
  )
  # Evaluations at steps 2, 4, .. 16; the best first at step 4.
  train(tmp_path, eval_every_epochs=0.25, keep_checkpoints=2)
  checkpoints = Checkpoints(str(tmp_path))
  assert checkpoints.all_steps() == [4, 15, 16]
  assert checkpoints.best_step() == 4
  assert checkpoints.metrics(4)['eval/top1'] == 0.5


def test_a_broken_image_ends_the_run_after_what_was_trained_is_saved(tmp_path):
  run = resolve(eval_every_epochs=2.0)
  # In the first batch nothing is lost, and nothing is written.
  broken = with_broken_images(run.eval_reader, 9)
  with pytest.raises(InputError, match='record 9 of fake/test'):
    train(tmp_path / 'run', dataclasses.replace(run, eval_reader=broken))
  assert not (tmp_path / 'run').exists()
  # In batch 6, of training.
  index = run.train_reader.plan(5)[0][0]
  broken = with_broken_images(run.train_reader, index)
  with pytest.raises(InputError, match=f'record {index} of fake/train'):
    train(tmp_path / 'run', dataclasses.replace(run, train_reader=broken))
  assert Checkpoints(str(tmp_path / 'run')).latest_step() == 5
  # In the second batch of the last evaluation.
  broken = with_broken_images(run.eval_reader, 70)
  with pytest.raises(InputError, match='record 70 of fake/test'):
    train(tmp_path / 'run', dataclasses.replace(run, eval_reader=broken))
  assert Checkpoints(str(tmp_path / 'run')).latest_step() == NUM_STEPS
  # When the record is repaired, only the evaluation is left to do.
  outcome = train(tmp_path / 'run', run)
  assert not outcome.was_complete
  assert outcome.images_per_second is None
  assert outcome.metrics['eval/num_examples'] == 100


def test_broken_images_are_left_out_named_once_and_counted(
  whole, tmp_path, capsys
):
  run = resolve(data__on_bad_image='skip')
  reader = with_broken_images(run.train_reader, 9, 77)
  outcome = train(tmp_path, dataclasses.replace(run, train_reader=reader))
  assert outcome.metrics['eval/num_examples'] == 100
  assert outcome.metrics['eval/bad_images'] == 0
  out = capsys.readouterr().out
  warnings = [x for x in out.splitlines() if x.startswith('warning')]
  assert len(warnings) == 2
  for index in (9, 77):
    assert sum(f'record {index} of fake/train' in x for x in warnings) == 1
  lines = [x for x in read_metrics(tmp_path) if 'train/loss' in x]
  counts = [line['bad_images'] for line in lines]
  # In each of the two epochs, of two lines each, both are met.
  assert len(counts) == 4
  assert sum(counts[:2]) == sum(counts[2:]) == 2
  # Other images took their places.
  clean = [x for x in read_metrics(whole[0]) if 'train/loss' in x]
  assert lines[-1]['train/loss'] != clean[-1]['train/loss']


def test_evaluation_normalises_as_the_run_did(whole, capsys):
  workdir, outcome, _ = whole
  run = resolve(data__mean=(0.0, 0.0, 0.0), data__std=(9.0, 9.0, 9.0))
  assert evaluate_checkpoint(run, str(workdir), 'latest') == 0
  assert f'loss {outcome.metrics["eval/loss"]:.4f}' in capsys.readouterr().out
