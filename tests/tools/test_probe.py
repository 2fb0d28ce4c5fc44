"""The probe: a linear classifier on features, with few and many labels."""

import json

import numpy as np

from resnet.tools import probe
from tests.networks import save_random


def test_more_labels_are_better_and_the_numbers_are_repeatable(tool, tmp_path):
  # Features of random weights still tell digits apart.
  source = save_random(
    tmp_path / 'net.safetensors', size=8, class_names='abc', channels=1
  )
  args = (f'--weights={source}', '--data=digits', '--seeds=2')
  out = tool('probe', *args, '--json').stdout
  lines = [json.loads(line) for line in out.splitlines()]
  assert [line['labels_a_class'] for line in lines] == [5, 20, 100, None]
  assert [line['seeds'] for line in lines] == [2, 2, 2, 1]
  scores = [line['top1'] for line in lines]
  assert scores == sorted(scores) and 0.3 < scores[0] < scores[-1] < 1
  assert f'{scores[0]:.4f}' in tool('probe', *args).stdout


def test_the_few_labels_are_drawn_from_each_class():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), 50)
  features = np.eye(3)[labels] + 0.01 * rng.standard_normal((150, 3))
  assert probe.score((features, labels), (features, labels), 1, 0) == 1
