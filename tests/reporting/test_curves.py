"""The panels of runs: what is drawn, and what it is called."""

import numpy as np

from resnet.reporting import curves
from resnet.reporting.history import read_history
from tests.reporting.made_runs import write_run


def test_panels_show_training_and_test_of_every_run(tmp_path):
  lines = [
    {'step': 10, 'train/loss': 2.0, 'train/top1': 0.5, 'learning_rate': 0.1},
    {'step': 10, 'eval/loss': 3.0, 'eval/top1': 0.25},
  ]
  histories = [read_history(write_run(tmp_path / x, lines)) for x in 'ab']
  panels = curves.panels(histories, ['one', 'two'])
  assert [panel.y_label for panel in panels] == [
    'loss',
    'top-1 error, %',
    'learning rate',
    'images/s',
    'share of the time',
  ]
  loss, error, rate, *_ = panels
  assert [(x.label, x.style, x.bold, x.y.tolist()) for x in loss.lines] == [
    ('', 0, False, [2.0]),
    ('one', 0, True, [3.0]),
    ('', 1, False, [2.0]),
    ('two', 1, True, [3.0]),
  ]
  assert [x.y.tolist() for x in error.lines[:2]] == [[50.0], [75.0]]
  assert [x.label for x in rate.lines] == ['one', 'two']


def test_a_run_without_evaluation_has_its_name_at_the_training_curve(tmp_path):
  lines = [{'step': 10, 'train/loss': 2.0, 'train/top1': 0.5}]
  history = read_history(write_run(tmp_path, lines))
  loss, *_ = curves.panels([history], ['one'])
  assert loss.lines[0].label == 'one'
  assert np.isfinite(loss.lines[0].y).all()
