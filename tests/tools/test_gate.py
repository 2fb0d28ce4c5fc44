"""The gate against slower ratios, benchmarks/gate.py."""

import sys

import pytest

from benchmarks import gate


def test_a_fall_of_16_percent_fails_and_one_of_14_passes(tmp_path, monkeypatch):
  path = tmp_path / 'baseline.json'
  path.write_text('{"machine": "another", "ratios": {"a": 0.5, "b": 2.0}}')
  monkeypatch.setattr(gate, 'BASELINE', path)
  monkeypatch.setattr(sys, 'argv', ['gate.py'])
  monkeypatch.setattr(gate, 'CASES', {'a': None, 'b': None})
  ratios = {'a': 0.5 * 0.86, 'b': 2.0 * 0.86}
  monkeypatch.setattr(gate, 'measure', lambda case: {case: ratios[case]})
  gate.main()
  ratios['b'] = 2.0 * 0.84
  with pytest.raises(SystemExit, match=r'^Fallen by more than 15 %.*: b$'):
    gate.main()
  # So does one under its floor, whatever the baseline.
  monkeypatch.setattr(gate, 'FLOORS', {'a': 0.8})
  for known in ({'a': 0.85}, {}):
    assert gate.compare(known, {'a': 0.81})[1] == []
    assert gate.compare(known, {'a': 0.79})[1] == ['a']
