"""What is read of a run's files, and drawn of it."""

import json
import math

import jax
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.plots import curves
from resnet.run import provenance
from resnet.run.history import read_history
from tests.run.made_runs import write_run


def test_series_keep_what_is_not_finite_as_nan(tmp_path):
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


def test_train_seconds_fill_intervals_without_a_rate(tmp_path):
  lines = [
    {'step': 5, 'train/loss': 1.0},
    # 50 images at 100 a second, then at 25: 0.5 s and 2 s for 10 updates.
    {'step': 10, 'train/loss': 1.0, 'images_per_second': 100.0},
    {'step': 15, 'train/loss': 1.0, 'images_per_second': 25.0},
  ]
  assert read_history(write_run(tmp_path, lines)).train_seconds == 3.75
  assert read_history(write_run(tmp_path, lines[:1])).train_seconds is None


def test_half_a_line_at_the_end_is_left_out(tmp_path):
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
  for text, message in (
    ('{"step": 1\n', 'metrics.jsonl cannot be read'),
    ('[1]\n', 'did not write'),
  ):
    (tmp_path / 'metrics.jsonl').write_text(text)
    with pytest.raises(InputError, match=message):
      read_history(path)


def test_starts_tell_hardware_commits_and_time(tmp_path, monkeypatch):
  path = write_run(tmp_path, [])
  assert read_history(path).hardware == []
  for step, commit in ((0, None), (5, None), (7, 'abc+')):
    monkeypatch.setattr(provenance, 'commit', lambda commit=commit: commit)
    provenance.record_start(path, step=step, devices=jax.devices())
    assert read_history(path).wall_seconds is None  # An end is missing.
    provenance.record_end(path, step=step + 1)
  file = tmp_path / 'starts.jsonl'
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  for line, time in zip(
    lines,
    ('1:00:00', '1:00:30', '2:00:00', '2:01:00', '3:00:00', '3:00:05'),
    strict=True,
  ):
    line['time'] = f'2026-01-01T0{time}+00:00'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  history = read_history(path)
  assert [start['step'] for start in history.starts] == [0, 5, 7]
  assert history.commits == ['unknown', 'abc+']
  assert history.wall_seconds == 95
  (hardware,) = history.hardware
  assert 'cores of ' in hardware


def test_panels_show_training_and_test_of_every_run(tmp_path):
  lines = [
    {'step': 10, 'train/loss': 2.0, 'train/top1': 0.5, 'learning_rate': 0.1},
    {'step': 10, 'eval/loss': 3.0, 'eval/top1': 0.25},
  ]
  histories = [read_history(write_run(tmp_path / x, lines)) for x in 'ab']
  loss, error, *_ = curves.panels(histories, ['one', 'two'])
  assert [(x.label, x.style, x.bold, x.y.tolist()) for x in loss.lines] == [
    ('', 0, False, [2.0]),
    ('one', 0, True, [3.0]),
    ('', 1, False, [2.0]),
    ('two', 1, True, [3.0]),
  ]
  assert [x.y.tolist() for x in error.lines[:2]] == [[50.0], [75.0]]
