"""What is read of a run's files, and drawn of it."""

import math

import jax
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.plots import curves
from resnet.run import provenance
from resnet.run.history import read_history
from tests.run.made_runs import write_run


def test_series_have_nan_for_null(tmp_path):
  lines = [
    {'step': 5, 'train/loss': 1.5},
    {'step': 5, 'eval/top1': 0.5},
    {'step': 10, 'train/loss': None},
  ]
  history = read_history(write_run(tmp_path, lines))
  steps, values = history.series('train/loss')
  assert steps.tolist() == [5, 10]
  np.testing.assert_array_equal(values, [1.5, math.nan])
  assert history.last('eval/top1') == 0.5
  assert history.last('eval/top5') is None
  assert history.series('eval/top5')[0].shape == (0,)


def test_a_run_is_complete_with_its_last_evaluation(tmp_path):
  path = write_run(tmp_path, [])
  (tmp_path / 'metrics.jsonl').unlink()
  history = read_history(path)
  assert not history.lines and not history.is_complete
  lines = [{'step': 10, 'eval/top1': 0.5}, {'step': 20, 'train/loss': 1.0}]
  assert not read_history(write_run(tmp_path, lines)).is_complete
  lines.append({'step': 20, 'eval/top1': 0.5})
  assert read_history(write_run(tmp_path, lines)).is_complete


def test_a_partial_last_line_is_ignored(tmp_path):
  path = write_run(tmp_path, [{'step': 5, 'train/loss': 1.0}])
  with open(f'{path}/metrics.jsonl', 'a') as file:
    file.write('{"step": 10, "tra')
  (tmp_path / 'starts.jsonl').write_text('{"step": 0, "ti')
  provenance.record_start(path, step=3, devices=jax.devices())
  history = read_history(path)
  assert len(history.lines) == 1
  assert [x['step'] for x in history.starts] == [3]


def test_damaged_files_are_named(tmp_path):
  with pytest.raises(InputError, match=f'{tmp_path} holds no run'):
    read_history(str(tmp_path))
  path = write_run(tmp_path, [])
  for text in ('{"step": 1\n', '[1]\n'):
    (tmp_path / 'metrics.jsonl').write_text(text)
    with pytest.raises(InputError, match=r'metrics\.jsonl cannot be read'):
      read_history(path)


def test_starts_have_hardware_and_commits(tmp_path, monkeypatch):
  path = write_run(tmp_path, [])
  assert read_history(path).distinct('hardware') == []
  for step, commit in ((0, None), (5, None), (7, 'abc+')):
    monkeypatch.setattr(provenance, 'commit', lambda commit=commit: commit)
    provenance.record_start(path, step=step, devices=jax.devices())
    assert provenance.read_last_step(path) == step
    provenance.record_end(path, step=step + 1)
    assert provenance.read_last_step(path) == step + 1
  history = read_history(path)
  assert [start['step'] for start in history.starts] == [0, 5, 7]
  assert history.distinct('commit') == ['unknown', 'abc+']
  (hardware,) = history.distinct('hardware')
  assert 'cores of ' in hardware


def test_curves_of_runs_have_a_style_each_and_a_star_at_the_best(tmp_path):
  lines = [
    {'step': 10, 'train/loss': 2.0, 'train/top1': 0.5, 'learning_rate': 0.1},
    {'step': 10, 'eval/loss': 3.0, 'eval/top1': 0.25},
    {'step': 20, 'eval/loss': 2.0, 'eval/top1': None},
  ]
  averaged = {**lines[1], 'eval_ema/loss': 2.5, 'eval_ema/top1': 0.75}
  histories = [
    read_history(write_run(tmp_path / 'a', lines)),
    read_history(write_run(tmp_path / 'b', [lines[0], averaged])),
  ]
  figure = curves.draw_curves(histories, ['one', 'two'])
  loss, error, rate = figure.axes  # There is neither speed nor data wait.
  nan = math.nan
  for ax, values in (
    (loss, [[], [2], [3, 2], [3], [], [2], [3], [2.5], [2.5]]),
    (error, [[50], [75, nan], [75], [50], [75], [25], [25]]),
  ):
    for line, expected in zip(ax.lines, values, strict=True):
      np.testing.assert_array_equal(line.get_ydata(), expected)
  _, training, test, *_ = loss.lines
  assert training.get_xdata() == [4.0]  # Epochs.
  assert training.get_linewidth() < test.get_linewidth()
  assert training.get_color() == test.get_color() == rate.lines[0].get_color()
  assert labels(figure) == [
    *('one (best: top-1 25.00%)', 'two (best: top-1 75.00%)'),
    'two, averaged weights',
  ]
  alone = curves.draw_curves(histories[1:], ['net'])
  assert labels(alone) == [
    *('training', 'validation', 'validation, averaged weights'),
    'best: top-1 75.00% at epoch 4',
  ]


def labels(figure):
  (legend,) = figure.legends
  return [text.get_text() for text in legend.get_texts()]
