"""Closed forms of the learning rate."""

import math

import numpy as np
import pytest

from resnet.errors import InputError
from resnet.training.run_length import RunLength
from resnet.training.schedules import create_schedule
from tests.runs import section

LENGTH = RunLength(batch_size=512, num_steps=100, steps_per_epoch=10.0)
FIELDS = {'name': 'cosine', 'warmup_epochs': 0.5, 'decay_epochs': ()}
PEAK = 0.2  # 0.1 * 512 / 256


def rates(**changes):
  """Returns the rate of each step; those of the fields, with changes."""
  schedule = create_schedule(
    LENGTH, section('schedule', **{**FIELDS, **changes})
  )
  return np.asarray(schedule(np.arange(100)))


FALLING = pytest.mark.parametrize(
  ('name', 'share'),
  [
    ('cosine', lambda t: (1 + math.cos(math.pi * t)) / 2),
    ('polynomial', lambda t: (1 - t) ** 2),
  ],
)


@FALLING
def test_the_rate_rises_in_the_warmup_and_falls_to_zero(name, share):
  expected = [
    PEAK * (step + 1) / 5 if step < 5 else PEAK * share((step - 5) / 95)
    for step in range(100)
  ]
  # Near its end the cosine is a difference of float32 ones.
  np.testing.assert_allclose(rates(name=name), expected, rtol=1e-4, atol=1e-7)


@FALLING
def test_warmup_and_final_learning_rate_and_cooldown(name, share):
  actual = rates(
    name=name,
    warmup_epochs=1.5,
    warmup_learning_rate=0.01,  # All are times two here: the batch is larger.
    final_learning_rate=0.002,
    cooldown_epochs=2.0,
  )
  expected = [
    0.02 + (PEAK - 0.02) * step / 15
    if step < 15
    else 0.004 + (PEAK - 0.004) * share(min(1, (step - 15) / 65))
    for step in range(100)
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_step_decays_after_each_of_the_decay_epochs():
  actual = rates(name='step', warmup_epochs=1.0, decay_epochs=(3.0, 6.0))
  expected = [
    PEAK * (step + 1) / 10
    if step < 10
    else PEAK * 0.1 ** ((step >= 30) + (step >= 60))
    for step in range(100)
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_first_rate_is_the_peak_with_at_most_one_step_of_warmup():
  assert rates(warmup_epochs=0.0)[0] == pytest.approx(PEAK)
  one_step = rates(name='step', warmup_epochs=0.1)
  np.testing.assert_allclose(one_step, PEAK, rtol=1e-6)


@pytest.mark.parametrize(('power', 'last'), [(2.0, 0.0), (1.0, 0.02)])
def test_wsd_stays_at_the_peak_and_then_falls(power, last):
  actual = rates(
    name='wsd',
    decay_power=power,
    cooldown_epochs=2.0,
    final_learning_rate=last / 2,
  )
  expected = [
    PEAK * min(1, (step + 1) / 5)
    if step < 80
    else last + (PEAK - last) * ((100 - step) / 20) ** power
    for step in range(100)
  ]
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-8)


def test_one_cycle_equals_that_of_pytorch():
  torch = pytest.importorskip('torch')
  param = torch.nn.Parameter(torch.zeros(1))
  tx = torch.optim.SGD([param], lr=1.0)
  theirs = torch.optim.lr_scheduler.OneCycleLR(
    tx, max_lr=PEAK, total_steps=100, pct_start=0.3
  )
  expected = []
  for _ in range(100):
    expected.append(tx.param_groups[0]['lr'])
    tx.step()
    if len(expected) < 100:
      theirs.step()
  actual = rates(name='one_cycle', warmup_epochs=3.0)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)
  assert np.argmax(actual) == 29


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'warmup_epochs': 10.0}, 'less than the 100 steps'),
    ({'name': 'step', 'decay_epochs': (6.0, 3.0)}, 'must rise'),
    ({'name': 'one_cycle', 'warmup_epochs': 0.0}, 'expected 2 to 98'),
    ({'cooldown_epochs': 9.5}, '95 steps; expected 0 to 94,'),
    ({'cooldown_epochs': 1.0}, 'of zero: give .*final_learning_rate'),
  ],
)
def test_errors_name_bad_fields(changes, message):
  with pytest.raises(InputError, match=message):
    rates(**changes)
