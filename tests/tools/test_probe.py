"""The probe: features that separate classes are found to."""

import json
import sys

import numpy as np
import pytest

from resnet.models import weights
from resnet.tools import command, probe
from tests.networks import make_variables


@pytest.fixture
def run(monkeypatch, capsys):
  """(*args) -> what the tool prints; raises SystemExit for bad input."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['probe', *map(str, args)])
    command.run(probe.main, probe.parser())
    return capsys.readouterr().out

  return run


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Random weights: their features still tell digits apart."""
  _, variables = make_variables(
    'cifar_resnet8', size=8, num_classes=3, channels=1
  )
  path = str(tmp_path_factory.mktemp('probe') / 'random.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.3,),
      std=(0.4,),
      image_size=8,
      crop_share=1.0,
      interpolation='bilinear',
    ),
  )
  weights.save_weights(variables, path, metadata=metadata)
  return path


def test_more_labels_are_better_and_the_numbers_are_repeatable(run, source):
  args = (f'--weights={source}', '--data=digits', '--json', '--seeds=2')
  lines = [json.loads(line) for line in run(*args).splitlines()]
  assert [line['labels_a_class'] for line in lines] == [5, 20, 100, None]
  assert [line['seeds'] for line in lines] == [2, 2, 2, 1]
  scores = [line['top1'] for line in lines]
  assert scores == sorted(scores) and 0.3 < scores[0] < scores[-1] < 1
  assert lines == [json.loads(line) for line in run(*args).splitlines()]


def test_a_table_for_people(run, source):
  out = run(f'--weights={source}', '--data=digits', '--seeds=1')
  first, _, *rows = out.splitlines()
  assert '1,437 training and 360 test images, 64 features' in first
  assert [row.split()[0] for row in rows] == ['5', '20', '100', 'all']


def test_the_few_are_drawn_by_class():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(3), 50)
  features = np.eye(3)[labels] + 0.01 * rng.standard_normal((150, 3))
  assert probe._score((features, labels), (features, labels), 1, 0) == 1


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--data=digit'], "no data set 'digit'"),
    (['--data=digits', '--train-split=trian'], "no split 'trian'"),
    (['--data=digits', '--seeds=0'], 'must be positive'),
    (['--data=digits', '--weights=/no/where'], 'no weights at'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  run, source, capsys, args, message
):
  with pytest.raises(SystemExit) as error:
    run(f'--weights={source}', *args)
  assert error.value.code == 2
  out, err = capsys.readouterr()
  assert not out and len(err.splitlines()) == 1 and message in err
