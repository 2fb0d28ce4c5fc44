"""The probe: a linear classifier on features, with few and many labels."""

import re

import numpy as np

from resnet.tools import probe
from tests.networks import save_random


def test_more_labels_are_better_and_the_numbers_are_repeatable(tool, tmp_path):
  # Features of random weights still tell digits apart.
  source = save_random(
    tmp_path / 'net.safetensors', size=8, class_names='abc', channels=1
  )
  args = (f'--weights={source}', '--data=digits', '--seeds=2')
  out = tool('probe', *args).stdout
  rows = re.findall(r'^ +(\S+)   (0\.\d+)( ± 0\.\d+)?$', out, re.M)
  assert [labels for labels, _, _ in rows] == ['5', '20', '100', 'all']
  assert [bool(deviation) for *_, deviation in rows] == [True] * 3 + [False]
  scores = [float(mean) for _, mean, _ in rows]
  assert scores == sorted(scores) and 0.3 < scores[0] < scores[-1] < 1
  assert tool('probe', *args).stdout == out


def test_the_few_labels_are_drawn_from_each_class():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), 50)
  features = np.eye(3)[labels] + 0.01 * rng.standard_normal((150, 3))
  assert probe.score((features, labels), (features, labels), 1, 0) == 1
