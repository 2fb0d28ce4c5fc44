"""What is read of a run's files."""

import math

import jax
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.reporting.history import read_history
from resnet.training import starts
from tests.reporting.made_runs import write_run


def test_series_keep_what_is_not_finite_as_nan(tmp_path):
  path = write_run(
    tmp_path,
    [
      {'step': 5, 'train/loss': 1.5},
      {'step': 5, 'eval/top1': 0.5},
      {'step': 10, 'train/loss': None},
    ],
  )
  history = read_history(path)
  steps, values = history.series('train/loss')
  assert steps.tolist() == [5, 10]
  np.testing.assert_array_equal(values, [1.5, math.nan])
  assert history.last('eval/top1') == 0.5
  assert history.last('eval/top5') is None
  assert history.series('eval/top5')[0].shape == (0,)


def test_a_run_is_complete_with_its_last_evaluation(tmp_path):
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
  unknown = read_history(write_run(tmp_path, lines[:1]))
  assert unknown.train_seconds is None


def test_a_run_that_was_only_begun_has_no_lines(tmp_path):
  path = write_run(tmp_path, [])
  assert not read_history(path).lines
  (tmp_path / 'metrics.jsonl').unlink()
  history = read_history(path)
  assert not history.lines
  assert not history.is_complete


def test_half_a_line_at_the_end_is_left_out(tmp_path):
  path = write_run(tmp_path, [{'step': 5, 'train/loss': 1.0}])
  with open(f'{path}/metrics.jsonl', 'a') as file:
    file.write('{"step": 10, "tra')
  assert len(read_history(path).lines) == 1


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"step": 1\n', 'cannot be read'),
    ('[1]\n', 'did not write'),
  ],
)
def test_damaged_metrics_are_named(tmp_path, text, message):
  path = write_run(tmp_path, [])
  (tmp_path / 'metrics.jsonl').write_text(text)
  with pytest.raises(InputError, match=message):
    read_history(path)


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(InputError, match=f'{tmp_path} holds no run'):
    read_history(str(tmp_path))


def test_starts_say_where_and_by_what_code(tmp_path, monkeypatch):
  path = write_run(tmp_path, [{'step': 5, 'train/loss': 1.0}])
  assert read_history(path).hardware == []

  devices = jax.devices()
  monkeypatch.setattr(starts, 'commit', lambda: None)
  starts.record_start(path, step=0, devices=devices)
  starts.record_start(path, step=5, devices=devices)
  monkeypatch.setattr(starts, 'commit', lambda: 'abc+')
  starts.record_start(path, step=7, devices=devices)
  history = read_history(path)
  assert [start['step'] for start in history.starts] == [0, 5, 7]
  assert history.commits == ['unknown', 'abc+']
  assert history.wall_seconds is None
  (hardware,) = history.hardware
  assert 'cores of ' in hardware


def test_wall_time_is_from_starts_to_ends(tmp_path, monkeypatch):
  path = write_run(tmp_path, [])
  times = iter(['10:00:00', '10:00:30', '11:00:00', '11:01:00', '12:00:00'])
  monkeypatch.setattr(starts, '_now', lambda: f'2026-01-01T{next(times)}+00:00')
  for _ in range(2):
    starts.record_start(path, step=0, devices=jax.devices())
    starts.record_end(path, step=1)
  assert read_history(path).wall_seconds == 90
  starts.record_start(path, step=1, devices=jax.devices())
  assert read_history(path).wall_seconds is None


def test_half_a_line_of_a_killed_start_is_survived(tmp_path):
  path = write_run(tmp_path, [])
  (tmp_path / 'starts.jsonl').write_text('{"step": 0, "ti')
  starts.record_start(path, step=3, devices=jax.devices())
  assert [x['step'] for x in read_history(path).starts] == [3]
