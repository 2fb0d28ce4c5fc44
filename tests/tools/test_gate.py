"""The gate against slower ratios, benchmarks/gate.py."""

import json
import sys

import pytest

from benchmarks import gate


@pytest.fixture
def baseline(tmp_path, monkeypatch):
  """Returns what puts ratios in the place of the baseline; and its path."""
  path = tmp_path / 'baseline.json'
  monkeypatch.setattr(gate, '_BASELINE', path)

  def put(**ratios):
    path.write_text(json.dumps({'machine': 'another', 'ratios': ratios}))
    return path

  return put


def _run(monkeypatch, found, *flags):
  """Runs the script; each case has measured its own of the ratios."""
  cases = dict(enumerate(found.items()))
  monkeypatch.setattr(gate, '_CASES', cases)
  monkeypatch.setattr(gate, 'measure', lambda case: dict([cases[case]]))
  monkeypatch.setattr(sys, 'argv', ['gate.py', *flags])
  gate.main()


def test_ratios_that_are_missing_or_new_are_named():
  baseline = {'a': 2.0, 'b': 1.0, 'c': 1.0}
  lines, fallen = gate.compare(baseline, {'a': 1.71, 'b': 0.84, 'd': 3.0})
  assert lines == [
    'a: 1.710, was 2.000',
    'b: 0.840, was 1.000',
    'c: not measured',
    'd: 3.000, not in the baseline',
  ]
  assert fallen == ['b']


def test_a_fall_of_16_percent_fails_and_one_of_14_passes(
  baseline, monkeypatch, capsys
):
  baseline(a=0.5, b=2.0)
  _run(monkeypatch, {'a': 0.5 * 0.86, 'b': 2.0 * 0.86})
  said = capsys.readouterr().out
  assert 'a: 0.430, was 0.500' in said and 'another machine: another' in said
  with pytest.raises(SystemExit, match=r'^Fallen by more than 15 %.*: b$'):
    _run(monkeypatch, {'a': 0.5 * 0.86, 'b': 2.0 * 0.84})


def test_a_ratio_under_its_floor_fails(monkeypatch):
  monkeypatch.setattr(gate, '_FLOORS', {'a': 0.8})
  assert gate.compare({'a': 0.85}, {'a': 0.81})[1] == []
  assert gate.compare({'a': 0.85}, {'a': 0.79})[1] == ['a']
  assert gate.compare({}, {'a': 0.79})[1] == ['a']


def test_a_new_baseline_has_each_ratio_that_was_measured(
  baseline, monkeypatch, capsys
):
  path = baseline(a=0.5, gone=2.0)
  _run(monkeypatch, {'a': 0.25, 'new': 1.23456}, '--write')
  assert json.loads(path.read_text())['ratios'] == {'a': 0.25, 'new': 1.235}
  assert 'gone: not measured' in capsys.readouterr().out
  _run(monkeypatch, {'a': 0.25, 'new': 1.235})  # It passes its own gate.


def test_the_baseline_has_every_case():
  baseline = json.loads(gate._BASELINE.read_text())
  assert baseline['machine']
  assert gate._FLOORS.keys() <= baseline['ratios'].keys()
  for case, (subject, *_) in gate._CASES.items():
    rivals = {'loop': ['step'], 'recipes': ['all']}.get(
      subject, ['flax', 'torch-eager']
    )
    for rival in rivals:
      name = f'{case} / {rival}'
      assert baseline['ratios'].pop(name) > gate._FLOORS.get(name, 0)
  # What else there may be is of torch.compile, which not every machine has.
  assert all(name.endswith(' / torch-compile') for name in baseline['ratios'])


def test_a_case_that_ends_with_an_error_is_told(monkeypatch):
  monkeypatch.setattr(sys, 'executable', 'false')
  case = next(iter(gate._CASES))
  with pytest.raises(SystemExit, match=f'{case}: the benchmark ended with 1'):
    gate.measure(case)


@pytest.mark.slow
def test_the_gate_measures_a_small_network(baseline, monkeypatch):
  """The whole road, with real benchmarks; without torch, for its time."""
  monkeypatch.setenv('XLA_FLAGS', '')
  small = ['--config=configs/fake.py', '--rounds=2']
  cases = {
    'small': ['step', *small, '--seconds=0.05'],
    'small, loop': ['loop', *small, '--intervals=1'],
    'small, plain': [
      *('recipes', '--only=erasing', '--rounds=2', '--batch-size=8'),
      *('--model=cifar_resnet8', '--size=8'),
    ],
  }
  monkeypatch.setattr(gate, '_CASES', cases)
  monkeypatch.setattr(gate, '_has_torch', lambda: False)
  monkeypatch.setattr(sys, 'argv', ['gate.py', '--write'])
  path = baseline()
  gate.main()
  ratios = json.loads(path.read_text())['ratios']
  assert set(ratios) == {
    'small / flax',
    'small, loop / step',
    'small, plain / erasing',
  }
  assert min(ratios.values()) > 0
