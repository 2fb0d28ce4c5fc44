"""The band of a reference: closed forms, warnings, what is refused."""

import json
import math

import pytest
from scipy import stats

from resnet.errors import InputError
from resnet.run.reference import Reference, read_reference


def make():
  """A reference of three runs whose losses at step 5 were 1, 2 and 3."""
  return Reference(
    num_seeds=3,
    config={'batch_size': 8},
    bands={'train/loss': {5: (2.0, 1.0)}, 'eval/top1': {10: (0.5, 0.01)}},
  )


def sigma_of(t, num_seeds):
  """Where a normal distribution has the tail that Student's has at t."""
  tail = stats.t.sf(abs(t), num_seeds - 1)
  return math.copysign(stats.norm.isf(tail), t)


def test_sigma_is_that_of_a_new_run_against_a_mean_of_three():
  reference = make()
  # The mean is uncertain by a third of the variance of a run.
  for value in (4.0, 1.0, -30.0):
    t = (value - 2) / math.sqrt(4 / 3)
    assert reference.sigmas(5, 'train/loss', value) == pytest.approx(
      sigma_of(t, 3)
    )
  assert reference.sigmas(6, 'train/loss', 4.0) is None
  assert reference.sigmas(5, 'eval/top1', 4.0) is None
  assert reference.sigmas(5, 'train/loss', math.nan) == math.inf
  sigma = reference.sigmas(10, 'eval/top1', 0.46)
  assert sigma == pytest.approx(sigma_of(-4 / math.sqrt(4 / 3), 3))


def test_values_outside_the_band_give_warnings():
  reference = make()
  # The 0.135 % quantile of Student's t with two degrees of freedom is 19.2.
  values = {'train/loss': 2 + 22.5, 'learning_rate': 1.0}
  assert reference.warnings(5, 0.5, values) == [
    'warning: epoch 0.5: train/loss 24.5000 is 3.0 sigma above reference'
    ' (2.0000)'
  ]
  assert reference.warnings(5, 0.5, {'train/loss': 2 + 22.0}) == []
  assert reference.warnings(7, 0.7, {'train/loss': 99.0}) == []
  (line,) = reference.warnings(5, 0.5, {'train/loss': math.nan})
  assert 'nan is inf sigma above' in line


def test_a_damaged_reference_is_refused(tmp_path):
  path = tmp_path / 'band.json'
  fields = {
    'num_seeds': 3,
    'config': {'batch_size': 8},
    'bands': {
      'train/loss': {'step': [5], 'mean': [2.0], 'std': [1.0]},
      'eval/top1': {'step': [10], 'mean': [0.5], 'std': [0.01]},
    },
  }
  path.write_text(json.dumps(fields))
  assert read_reference(str(path)) == make()
  del fields['bands']['eval/top1']['std']
  path.write_text(json.dumps(fields))
  for broken in (path, '/nowhere.json'):
    with pytest.raises(
      InputError,
      match=f'--reference={broken} was not written by resnet.tools.reference',
    ):
      read_reference(str(broken))


def test_fields_that_differ_from_the_reference_are_listed():
  assert make().describe({'batch_size': 8}) == 'Reference of 3 seeds.'
  assert make().describe({'batch_size': 16}) == (
    'Reference of 3 seeds; the config differs in batch_size.'
  )
