"""The gate against slower ratios, benchmarks/gate.py."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gate


@pytest.fixture
def baseline(tmp_path, monkeypatch):
  """(**ratios) -> the path of a baseline with these ratios."""
  path = tmp_path / 'baseline.json'
  monkeypatch.setattr(gate, 'BASELINE', path)

  def put(**ratios):
    path.write_text(json.dumps({'machine': 'another', 'ratios': ratios}))
    return path

  return put


def run_gate(monkeypatch, ratios, *flags):
  """Runs the script; every case has measured one of the ratios."""
  cases = dict(enumerate(ratios.items()))
  monkeypatch.setattr(gate, 'CASES', cases)
  monkeypatch.setattr(gate, 'measure', lambda case: dict([cases[case]]))
  monkeypatch.setattr(sys, 'argv', ['gate.py', *flags])
  gate.main()


def test_a_fall_of_16_percent_fails_and_one_of_14_passes(
  baseline, monkeypatch, capsys
):
  baseline(a=0.5, b=2.0)
  run_gate(monkeypatch, {'a': 0.5 * 0.86, 'b': 2.0 * 0.86})
  said = capsys.readouterr().out
  assert 'a: 0.430, was 0.500' in said and 'another machine: another' in said
  with pytest.raises(SystemExit, match=r'^Fallen by more than 15 %.*: b$'):
    run_gate(monkeypatch, {'a': 0.5 * 0.86, 'b': 2.0 * 0.84})
  # So does one under its floor, whatever the baseline.
  monkeypatch.setattr(gate, 'FLOORS', {'a': 0.8})
  for known in ({'a': 0.85}, {}):
    assert gate.compare(known, {'a': 0.81})[1] == []
    assert gate.compare(known, {'a': 0.79})[1] == ['a']


def test_a_new_baseline_has_each_ratio_that_was_measured(
  baseline, monkeypatch, capsys
):
  path = baseline(a=0.5, gone=2.0)
  run_gate(monkeypatch, {'a': 0.25, 'new': 1.23456}, '--write')
  assert json.loads(path.read_text())['ratios'] == {'a': 0.25, 'new': 1.235}
  said = capsys.readouterr().out
  assert 'gone: not measured' in said
  assert 'new: 1.235, not in the baseline' in said
  run_gate(monkeypatch, {'a': 0.25, 'new': 1.235})  # It passes its own gate.


def test_the_baseline_has_every_case_above_its_floor():
  baseline = json.loads(gate.BASELINE.read_text())
  assert baseline['machine']
  assert gate.FLOORS.keys() <= baseline['ratios'].keys()
  for case, (subject, *_) in gate.CASES.items():
    rivals = {'loop': ['step'], 'recipes': ['all']}.get(
      subject, ['flax', 'torch-eager']
    )
    for rival in rivals:
      name = f'{case} / {rival}'
      assert baseline['ratios'].pop(name) > gate.FLOORS.get(name, 0)
  # The others are of torch.compile, which not every machine has.
  assert all(name.endswith(' / torch-compile') for name in baseline['ratios'])


def test_ratios_are_read_from_the_figures_of_a_benchmark(monkeypatch):
  step = {'against': {'flax': {'ratio': {'median': 2.0}}}}
  figures = {
    'resnet.tools.benchmark step': step,
    'resnet.tools.benchmark loop': {'ratio': {'median': 0.9}},
    'benchmarks.recipes --only=all': {'all': 1.25},  # How much longer.
  }

  def benchmark(command, **_):
    path = command[-1].removeprefix('--json=')
    found = figures[' '.join(command[2:4])]
    pathlib.Path(path).write_text(json.dumps(found))
    return subprocess.CompletedProcess(command, 0)

  cases = {name: [name] for name in ('step', 'loop')}
  cases['recipes'] = ['recipes', '--only=all']
  monkeypatch.setattr(gate, 'CASES', cases)
  monkeypatch.setattr(subprocess, 'run', benchmark)
  found = [gate.measure(case) for case in cases]
  assert found == [
    *({'step / flax': 2.0}, {'loop / step': 0.9}, {'recipes / all': 0.8})
  ]
  monkeypatch.undo()
  monkeypatch.setattr(sys, 'executable', 'false')
  case = next(iter(gate.CASES))
  with pytest.raises(SystemExit, match=f'{case}: the benchmark ended with 1'):
    gate.measure(case)
