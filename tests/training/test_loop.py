"""The run: what it writes, and that it goes on as if nothing had happened."""

import json
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.loader import DeviceLoader
from resnet.errors import InputError, RunError
from resnet.training import evaluate, loop, programs
from resnet.training import run as run_lib
from resnet.training.checkpoint import Checkpoints

NUM_STEPS = 16
TIMES = ('images_per_second', 'data_wait')


def resolve(**changes):
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.save_every_steps = 3
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return experiment.resolve(config)


def train(workdir, **changes):
  return run_lib.train(resolve(**changes), str(workdir), start_time=0.0)


def lines(workdir):
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def untimed(workdir):
  return [
    {name: value for name, value in line.items() if name not in TIMES}
    for line in lines(workdir)
  ]


def final_state(workdir):
  state = resolve().abstract_state()
  return jax.device_get(Checkpoints(str(workdir)).restore(NUM_STEPS, state))


def assert_same_run(workdir, other):
  assert untimed(workdir) == untimed(other)
  jax.tree.map(
    np.testing.assert_array_equal, final_state(workdir), final_state(other)
  )


def at_batch(monkeypatch, number, action):
  """Calls `action` before batch `number` (from 1) of this process is given."""
  count, real = 0, DeviceLoader.__next__

  def patched(self):
    nonlocal count
    count += 1
    if count == number:
      action()
    return real(self)

  monkeypatch.setattr(DeviceLoader, '__next__', patched)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data_dir):
  """An uninterrupted run."""
  del data_dir
  workdir = tmp_path_factory.mktemp('whole')
  steps, real = [], programs.jit_steps
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      programs, 'jit_steps', lambda *args: steps.append(real(*args)) or steps[0]
    )
    outcome = train(workdir)
  return workdir, outcome, steps[0]


def test_a_run_ends_with_its_evaluation(whole):
  workdir, outcome, _ = whole
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


def test_each_shape_is_compiled_once(whole):
  _, _, steps = whole
  assert steps.train._cache_size() == 1
  assert steps.evaluate._cache_size() == 1


def test_metrics_lines_are_as_promised(whole):
  workdir, _, _ = whole
  train_lines = [line for line in lines(workdir) if 'train/loss' in line]
  eval_lines = [line for line in lines(workdir) if 'eval/loss' in line]
  assert [line['step'] for line in train_lines] == [4, 8, 12, 16]
  assert [line['step'] for line in eval_lines] == [8, 16]
  for line in train_lines:
    assert set(line) == {
      'step',
      'epoch',
      'train/loss',
      'train/top1',
      'learning_rate',
      *TIMES,
    }
    assert line['epoch'] == line['step'] / 8
    assert 0 <= line['train/top1'] <= 1
    assert 0 <= line['data_wait'] <= 1
  # The rate falls to a tenth after one epoch.
  rates = [line['learning_rate'] for line in train_lines]
  assert rates == pytest.approx([0.025, 0.025, 0.0025, 0.0025])
  assert set(eval_lines[0]) == {
    'step',
    'epoch',
    *(f'eval/{name}' for name in ('loss', 'top1', 'top5', 'num_examples')),
  }


# (At the first batch the process may end at once, and the tests with it.)
# The evaluation at step 8 asks for three batches: two, and the end.
@pytest.mark.parametrize(('number', 'step'), [(2, 2), (10, 8), (14, 11)])
def test_a_stopped_run_goes_on_bit_for_bit(
  whole, tmp_path, monkeypatch, number, step
):
  with monkeypatch.context() as patch:
    at_batch(patch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = train(tmp_path)
  assert outcome.signal == signal.SIGTERM
  assert outcome.step == step
  assert Checkpoints(str(tmp_path)).latest_step() == step
  # How the data are read may change.
  outcome = train(tmp_path, data__num_threads=3)
  assert outcome.signal is None
  assert_same_run(tmp_path, whole[0])


def test_a_crashed_run_goes_on_from_its_checkpoint(
  whole, tmp_path, monkeypatch
):
  def crash():
    raise RuntimeError('crash')

  for number in (6, 7):
    with monkeypatch.context() as patch:
      at_batch(patch, number, crash)
      with pytest.raises(RuntimeError, match='crash'):
        train(tmp_path)
  train(tmp_path, data__num_workers=2)
  assert_same_run(tmp_path, whole[0])


def test_curves_that_a_kill_has_not_let_be_are_drawn(whole):
  workdir, _, _ = whole
  before = (workdir / 'curves.png').read_bytes()
  (workdir / 'curves.png').unlink()
  assert train(workdir).was_complete
  assert (workdir / 'curves.png').read_bytes() == before


def test_a_complete_run_is_left_alone(whole):
  workdir, outcome, _ = whole
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  again = train(workdir)
  assert again.was_complete
  assert again.metrics == outcome.metrics
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def test_another_config_is_refused_and_nothing_is_written(whole):
  workdir, _, _ = whole
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  with pytest.raises(InputError, match='seed: 0 there, 1 now'):
    train(workdir, seed=1)
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before


def test_checkpoints_without_a_config_are_not_touched(tmp_path):
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  with pytest.raises(InputError, match=r'no config\.json'):
    train(tmp_path)
  assert [p.name for p in tmp_path.rglob('*')] == ['checkpoints', '5']


def test_the_best_checkpoint_and_the_last_ones_are_kept(tmp_path, monkeypatch):
  top1 = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.4, 0.1, 0.2])
  monkeypatch.setattr(
    loop,
    'evaluate',
    lambda *_, **__: {
      'eval/loss': 0.0,
      'eval/top1': next(top1),
      'eval/top5': 1.0,
      'eval/num_examples': 100,
    },
  )
  # Evaluations at steps 2, 4, .. 16; the best first at step 4.
  train(
    tmp_path, eval_every_epochs=0.25, keep_checkpoints=2, save_every_steps=3
  )
  checkpoints = Checkpoints(str(tmp_path))
  folder = tmp_path / 'checkpoints'
  kept = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  assert kept == [4, 15, 16]
  assert checkpoints.best_step() == 4
  assert checkpoints.metrics(4)['eval/top1'] == 0.5


def test_a_broken_record_stops_before_anything_is_written(
  tmp_path, monkeypatch
):
  run = resolve()
  real = type(run.eval_reader.source.records)._record

  def broken(self, index):
    record = real(self, index)
    return {**record, 'image': b'no image'} if index == 9 else record

  monkeypatch.setattr(type(run.eval_reader.source.records), '_record', broken)
  with pytest.raises(InputError, match='record 9 of fake/'):
    run_lib.train(run, str(tmp_path / 'run'), start_time=0.0)
  assert not (tmp_path / 'run').exists()


def test_a_broken_record_met_later_is_named_after_saving(tmp_path, monkeypatch):
  run = resolve()
  real = type(run.train_reader).__call__

  def broken(self, step):
    if self.seed is not None and step == 5:
      return InputError('record 9 is broken')
    return real(self, step)

  with monkeypatch.context() as patch:
    patch.setattr(type(run.train_reader), '__call__', broken)
    with pytest.raises(InputError, match='record 9'):
      train(tmp_path)
  assert Checkpoints(str(tmp_path)).latest_step() == 5


def test_broken_records_are_left_out_named_once_and_counted(
  whole, tmp_path, monkeypatch, capsys
):
  records = type(resolve().train_reader.source.records)
  real = records._record

  def broken(self, index):
    record = real(self, index)
    is_bad = index in (9, 77) and len(self) == 512
    return {**record, 'image': b'no image'} if is_bad else record

  with monkeypatch.context() as patch:
    patch.setattr(records, '_record', broken)
    outcome = train(tmp_path / 'a', data__on_bad_image='skip')
    out = capsys.readouterr().out
    with pytest.raises(InputError, match=r'2 broken .*max_bad_images=1'):
      train(
        tmp_path / 'b',
        data__on_bad_image='skip',
        data__max_bad_images=1,
      )
    # Another limit is another try.
    train(tmp_path / 'b', data__on_bad_image='skip')
  assert outcome.metrics['eval/num_examples'] == 100
  assert outcome.metrics['eval/bad_images'] == 0
  warnings = [x for x in out.splitlines() if x.startswith('warning')]
  assert len(warnings) == 2
  for index in (9, 77):
    assert sum(f'record {index} of fake/train' in x for x in warnings) == 1
  counts = [x['bad_images'] for x in lines(tmp_path / 'a') if 'train/loss' in x]
  # In each of the two epochs, of two lines each, both are met.
  assert len(counts) == 4
  assert sum(counts[:2]) == sum(counts[2:]) == 2
  assert [x.get('train/loss') for x in lines(tmp_path / 'b')] == [
    x.get('train/loss') for x in lines(tmp_path / 'a')
  ]
  # They are not those of the whole set.
  assert lines(tmp_path / 'a')[-1] != lines(whole[0])[-1]


def test_without_broken_records_nothing_changes_but_the_count(whole, tmp_path):
  train(tmp_path, data__on_bad_image='skip')
  names = ('bad_images', 'eval/bad_images')
  found = untimed(tmp_path)
  assert {line.pop(name) for line in found for name in names if name in line}
  assert found == untimed(whole[0])


def test_death_of_a_worker_ends_the_run_after_saving(tmp_path, monkeypatch):
  def die():
    raise RunError('a worker died')

  with monkeypatch.context() as patch:
    at_batch(patch, 6, die)
    with pytest.raises(RunError, match='a worker died'):
      train(tmp_path)
  assert Checkpoints(str(tmp_path)).latest_step() == 5


def test_a_run_from_before_a_field_goes_on(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  saved = json.loads((workdir / 'config.json').read_text())
  for field in ('on_bad_image', 'max_bad_images', 'max_worker_restarts'):
    del saved['config'][f'data.{field}']
  # And of the jitter the hue, which came later.
  del saved['config']['augment.jitter'][3]
  (workdir / 'config.json').write_text(json.dumps(saved))
  assert train(workdir).was_complete
  with pytest.raises(InputError, match=r"data\.on_bad_image: 'error' there"):
    train(workdir, data__on_bad_image='skip')
  assert train(workdir, augment__jitter=(0.4, 0.4, 0.4)).was_complete


def test_data_prepared_anew_are_refused(whole, monkeypatch):
  workdir, _, _ = whole
  real = experiment.Experiment.derived
  monkeypatch.setattr(
    experiment.Experiment,
    'derived',
    lambda self: {**real(self), 'num_train_examples': 513},
  )
  with pytest.raises(InputError, match='num_train_examples: 512 there, 513'):
    train(workdir)


def test_evaluation_normalises_as_the_run_did(whole, capsys):
  workdir, outcome, _ = whole
  run = resolve(data__mean=(0.0, 0.0, 0.0), data__std=(9.0, 9.0, 9.0))
  assert evaluate.run(run, str(workdir), 'latest') == 0
  assert f'loss {outcome.metrics["eval/loss"]:.4f}' in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named(tmp_path):
  train(tmp_path)
  folder = tmp_path / 'checkpoints' / str(NUM_STEPS)
  shutil.rmtree(folder / 'default')
  with pytest.raises(InputError, match=f'step {NUM_STEPS} .*is damaged'):
    evaluate.run(resolve(), str(tmp_path), 'latest')


@pytest.mark.parametrize('number', [1, 2])
def test_a_signal_in_an_evaluation_is_made_up_for(
  whole, tmp_path, monkeypatch, number
):
  """The first of two evaluations is cut off, or the last one."""
  calls, real = [], loop.evaluate

  def interrupted(*args, **kwargs):
    calls.append(None)
    if len(calls) == number:
      os.kill(os.getpid(), signal.SIGTERM)
      while not kwargs['stop'].number:
        time.sleep(0.01)
    return real(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'evaluate', interrupted)
    outcome = train(tmp_path)
  assert outcome.signal == signal.SIGTERM
  assert outcome.metrics is None
  assert outcome.step == number * NUM_STEPS // 2
  assert not (tmp_path / 'curves.png').exists()
  with monkeypatch.context() as patch:
    # A kill between the line of the evaluation and the checkpoint with it.
    patch.setattr(Checkpoints, 'replace', _killed)
    with pytest.raises(KeyboardInterrupt):
      train(tmp_path)
  assert train(tmp_path).metrics == whole[1].metrics
  assert_same_run(tmp_path, whole[0])
  assert train(tmp_path).was_complete


def _killed(*_, **__):
  raise KeyboardInterrupt


def test_a_broken_record_in_the_last_evaluation_loses_no_step(
  whole, tmp_path, monkeypatch
):
  calls, real = [], loop.evaluate

  def broken(*args, **kwargs):
    calls.append(None)
    if len(calls) == 2:
      raise InputError('record 7 is broken')
    return real(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'evaluate', broken)
    with pytest.raises(InputError, match='record 7'):
      train(tmp_path)
  assert Checkpoints(str(tmp_path)).latest_step() == NUM_STEPS
  outcome = train(tmp_path)  # The record is mended: no step is done again.
  assert not outcome.was_complete
  assert outcome.images_per_second is None
  assert_same_run(tmp_path, whole[0])
