"""Rates, with a clock under control."""

import types

import pytest

from resnet.training import meter as meter_lib
from resnet.training.run_length import RunLength

LENGTH = RunLength(batch_size=10, num_steps=100, steps_per_epoch=1.0)


def test_rates_exclude_pauses_and_compilation(monkeypatch):
  now = 0.0
  monkeypatch.setattr(
    meter_lib, 'time', types.SimpleNamespace(monotonic=lambda: now)
  )
  waiter = types.SimpleNamespace(wait_seconds=0.0)
  meter = meter_lib.Meter(LENGTH, waiter, first_step=0)
  assert meter.mean is None
  assert meter.seconds_left(1) is None
  now = 50.0  # Compilation.
  meter.start(1)
  assert meter.interval(1) == {}  # No step is done.
  now, waiter.wait_seconds = 52.0, 0.5
  with meter.paused(lambda: None):
    now, waiter.wait_seconds = 60.0, 3.0  # Evaluation, and its own data.
  now, waiter.wait_seconds = 62.0, 3.5
  assert meter.interval(5) == {'images_per_second': 10.0, 'data_wait': 0.25}
  now = 64.0
  assert meter.interval(9) == {'images_per_second': 20.0, 'data_wait': 0.0}
  assert meter.mean == pytest.approx(80 / 6)
  assert meter.seconds_left(20) == pytest.approx(80 * 6 / 8)
