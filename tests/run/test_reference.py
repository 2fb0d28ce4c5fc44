"""The band of a reference: closed forms, warnings, what is refused."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from resnet.errors import InputError
from resnet.run.reference import make_reference, read_reference


def make(values=(1.0, 2.0, 3.0), top1=(0.5, 0.5, 0.5), **config):
  configs = [{'batch_size': 8, **config, 'seed': i} for i in range(len(values))]
  curves = [
    {
      'train/loss': (np.array([5, 10]), np.array([value, 0.0])),
      'eval/top1': (np.array([10]), np.array([accuracy])),
    }
    for value, accuracy in zip(values, top1, strict=True)
  ]
  return make_reference(configs, curves, num_eval_examples=100)


def sigma_of(t, num_seeds):
  """Where a normal distribution has the tail that Student's has at t."""
  tail = stats.t.sf(abs(t), num_seeds - 1)
  return math.copysign(stats.norm.isf(tail), t)


def test_sigma_is_that_of_a_new_run_against_a_mean_of_three():
  reference = make()
  # The runs have mean 2 and deviation 1; the mean itself is uncertain by a
  # third of that variance.
  for value in (4.0, 1.0, -30.0):
    t = (value - 2) / math.sqrt(4 / 3)
    assert reference.sigmas(5, 'train/loss', value) == pytest.approx(
      sigma_of(t, 3)
    )
  assert reference.sigmas(6, 'train/loss', 4.0) is None
  assert reference.sigmas(5, 'eval/top1', 4.0) is None
  assert reference.sigmas(5, 'train/loss', math.nan) == math.inf
  # The deviation of an accuracy is that of one of 100 images at least.
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


def test_runs_that_make_no_band_are_refused():
  with pytest.raises(InputError, match='at least 3 runs'):
    make((1.0, 2.0), (0.5, 0.5))
  with pytest.raises(InputError, match='not finite'):
    make((1.0, 2.0, math.nan))
  curves = [{'train/loss': (np.array([1]), np.array([1.0]))}] * 3
  configs = [{'seed': i, 'batch_size': 8 * (1 + i // 2)} for i in range(3)]
  with pytest.raises(InputError, match='differ in batch_size: 8 and 16'):
    make_reference(configs, curves, 1)


@pytest.mark.parametrize(
  'change',
  [
    lambda fields: fields.pop('bands'),
    lambda fields: fields['bands']['train/loss'].update(std=[0.0, 1.0]),
  ],
)
def test_a_file_is_read_and_a_damaged_one_refused(tmp_path, change):
  path = tmp_path / 'band.json'
  path.write_text(make().save_text())
  assert read_reference(str(path)) == make()
  fields = json.loads(make().save_text())
  change(fields)
  path.write_text(json.dumps(fields))
  with pytest.raises(InputError, match=r'is no file of resnet\.tools'):
    read_reference(str(path))
  with pytest.raises(InputError, match=r'--reference=/nowhere\.json cannot'):
    read_reference('/nowhere.json')
