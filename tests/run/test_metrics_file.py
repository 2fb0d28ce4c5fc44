"""metrics.jsonl, event files, progress."""

import io
import math
import os
import re
import sys
import termios
import types

import numpy as np
from PIL import Image
import pytest
from tensorboardX.event_file_writer import EventFileWriter

from resnet.errors import InputError
from resnet.run.metrics_file import MetricsWriter, Progress
from tests.runs import read_metrics, series


def open_writer(folder, first_step=0, **config):
  config = {'wandb': None, 'seed': 3, 'data.mean': [0.5], **config}
  return MetricsWriter(str(folder), first_step=first_step, config=config)


def test_a_line_is_json_with_null_for_values_that_are_not_finite(tmp_path):
  writer = open_writer(tmp_path, first_step=0)
  writer.write(3, 0.5, {'train/loss': 1.5, 'eval/loss': math.nan})
  writer.close()
  assert read_metrics(tmp_path) == [
    {'step': 3, 'epoch': 0.5, 'train/loss': 1.5, 'eval/loss': None}
  ]
  (events,) = tmp_path.glob('events.out.tfevents.*')
  assert b'train/loss' in events.read_bytes()


def test_a_restart_drops_later_lines_and_a_partial_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = open_writer(tmp_path, first_step=0)
  for step in (1, 2, 3):
    writer.write(step, 0.0, {'train/loss': float(step)})
  writer.close()
  with path.open('a') as file:
    file.write('{"step": 4, "ep')
  writer = open_writer(tmp_path, first_step=2)
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
    open_writer(tmp_path, first_step=1)
  assert line in path.read_text()


VALUES = {
  **{'train/loss': 6.9078, 'train/top1': 0.7812, 'learning_rate': 0.1},
  **{'images_per_second': 12345.6, 'data_wait': 0.12},
}


def test_a_terminal_has_a_bar_of_80_columns_below_the_lines():
  reading_end, terminal = os.openpty()
  termios.tcsetwinsize(terminal, (24, 80))
  with open(terminal, 'w') as stream:
    progress = Progress(first_step=450358, num_steps=450360, stream=stream)
    progress.say('hello')
    progress.advance()
    progress.metrics(450359, 89.88, VALUES, 36_745.0)
    progress.close()
    shown = os.read(reading_end, 10_000).decode()
  os.close(reading_end)
  assert 'hello\r\n' in shown and 'step' not in shown
  assert max(map(len, re.split(r'[\r\n]', shown))) <= 80
  assert shown.rstrip().endswith(
    '\r450359/450360 epoch 89.9 loss 6.908 top1 0.781 12346 img/s wait 12%'
    ' left 10h12m'
  )


def test_a_pipe_has_lines_and_no_bar():
  stream = io.StringIO()
  progress = Progress(first_step=0, num_steps=20, stream=stream)
  progress.advance()
  progress.metrics(10, 0.5, VALUES, 61.0)
  progress.close()
  assert stream.getvalue() == (
    'step 10/20  epoch 0.5  loss 6.9078  top1 0.7812  lr 0.1  12,346 images/s'
    '  data wait 12%  left 01:01\n'
  )


def test_event_files_have_hyperparameters_and_confusion_matrix(
  tmp_path, monkeypatch
):
  written = []
  monkeypatch.setattr(
    EventFileWriter, 'add_event', lambda _, event: written.append(event)
  )
  writer = open_writer(tmp_path)
  writer.write_confusion(7, np.array([[4, 0], [1, 3]]))
  writer.close()
  values = [(x.step, value) for x in written for value in x.summary.value]
  (_, _), (_, start), (step, matrix) = values
  content = start.metadata.plugin_data.content
  assert b'seed' in content and b'data.mean' in content and b'[0.5]' in content
  assert (step, matrix.tag.partition('_')[0]) == (7, 'eval/confusion')
  image = np.asarray(Image.open(io.BytesIO(matrix.image.encoded_image_string)))
  assert image[::200, ::200, 0].tolist() == [[0, 255], [127, 34]]


def test_wandb_gets_the_lines_of_metrics_in_one_run_per_workdir(
  tmp_path, monkeypatch
):
  starts, lines = [], []
  run = types.SimpleNamespace(
    log=lines.append, define_metric=lambda *_, **__: None, finish=lambda: None
  )
  stub = types.ModuleType('wandb')
  stub.Error = RuntimeError
  stub.init = lambda **options: starts.append(options) or run
  monkeypatch.setitem(sys.modules, 'wandb', stub)
  for step in (1, 2):
    writer = open_writer(tmp_path, first_step=step - 1, wandb='photos')
    writer.write(step, step / 2, {'train/loss': 1.0 / step})
    writer.close()
  assert lines == read_metrics(tmp_path) and len(lines) == 2
  first, second = starts
  assert first == second
  assert (first['project'], first['config']['seed']) == ('photos', 3)
