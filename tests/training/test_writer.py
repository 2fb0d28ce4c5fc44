"""metrics.jsonl, event files, progress."""

import io
import math

import pytest

from resnet.errors import InputError
from resnet.training.writer import MetricsWriter, Progress
from tests.runs import read_metrics, series

VALUES = {
  'train/loss': 0.5,
  'train/top1': 0.75,
  'learning_rate': 0.1,
  'images_per_second': 1234.0,
  'data_wait': 0.031,
}


def test_a_line_is_json_with_null_for_values_that_are_not_finite(tmp_path):
  writer = MetricsWriter(str(tmp_path), first_step=0)
  writer.write(3, 0.5, {'train/loss': 1.5, 'eval/loss': math.nan})
  writer.close()
  assert read_metrics(tmp_path) == [
    {'step': 3, 'epoch': 0.5, 'train/loss': 1.5, 'eval/loss': None}
  ]
  (events,) = tmp_path.glob('events.out.tfevents.*')
  assert b'train/loss' in events.read_bytes()


def test_a_restart_drops_later_lines_and_half_a_line(tmp_path):
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


def test_a_foreign_line_is_refused_and_kept(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnot json\n')
  with pytest.raises(InputError, match=r'metrics\.jsonl has a line'):
    MetricsWriter(str(tmp_path), first_step=1)
  assert 'not json' in path.read_text()


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('stream', [io.StringIO(), Terminal()])
def test_progress_shows_all_figures(stream):
  progress = Progress(first_step=0, num_steps=10, stream=stream)
  progress.advance()
  progress.metrics(1, 0.25, VALUES, seconds_left=65.0)
  progress.say('hello')
  progress.close()
  text = stream.getvalue()
  for part in (
    *('0.5000', '0.7500', 'lr 0.1', '1,234 images/s', 'data wait 3%'),
    *('step 1/10  epoch 0.2', 'left 01:05', 'hello'),
  ):
    assert part in text
  assert ('\r' in text) == stream.isatty()  # A bar is redrawn.
