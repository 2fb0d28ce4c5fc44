"""metrics.jsonl, event files, progress."""

import io
import math

import pytest

from resnet.errors import InputError
from resnet.run.metrics_file import MetricsWriter, Progress
from tests.runs import read_metrics, series


def test_a_line_is_json_with_null_for_values_that_are_not_finite(tmp_path):
  writer = MetricsWriter(str(tmp_path), first_step=0)
  writer.write(3, 0.5, {'train/loss': 1.5, 'eval/loss': math.nan})
  writer.close()
  assert read_metrics(tmp_path) == [
    {'step': 3, 'epoch': 0.5, 'train/loss': 1.5, 'eval/loss': None}
  ]
  (events,) = tmp_path.glob('events.out.tfevents.*')
  assert b'train/loss' in events.read_bytes()


def test_a_restart_drops_later_lines_and_a_partial_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = MetricsWriter(str(tmp_path), first_step=0)
  for step in (1, 2, 3):
    writer.write(step, 0.0, {'train/loss': float(step)})
  writer.close()
  with path.open('a') as file:
    file.write('{"step": 4, "ep')
  writer = MetricsWriter(str(tmp_path), first_step=2)
  writer.write(3, 0.0, {'train/loss': 30.0})
  writer.close()
  assert series(tmp_path, 'train/loss') == {1: 1.0, 2: 2.0, 3: 30.0}
  assert {p.name.partition('.')[0] for p in tmp_path.iterdir()} == {
    'events',
    'metrics',
  }


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('not json', r'\(repair or move it\): .* line 2 '),
    ('3', 'a line is not one object'),
    ('{"step": 2}, {"step": 3}', 'a line is not one object'),
  ],
)
def test_a_line_that_is_not_an_object_is_refused_and_kept(
  tmp_path, line, message
):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(f'{{"step": 1}}\n{line}\n')
  with pytest.raises(InputError, match=rf'metrics\.jsonl cannot .*{message}'):
    MetricsWriter(str(tmp_path), first_step=1)
  assert line in path.read_text()


def test_a_terminal_has_a_bar_below_the_lines():
  stream = io.StringIO()
  stream.isatty = lambda: True
  progress = Progress(first_step=0, num_steps=10, stream=stream)
  progress.advance()
  progress.say('hello')
  progress.close()
  assert 'hello\n' in stream.getvalue()
  assert '1/10' in stream.getvalue()
