"""The report and reference tools, on the files of made-up runs."""

import re
import sys

import pytest

from resnet.tools import command, reference, report
from resnet.training.reference import read_reference
from tests.reporting.made_runs import write_run


@pytest.fixture
def run(monkeypatch, capsys):
  """(tool, *args) -> what it prints; raises SystemExit for bad input."""

  def run(tool, *args):
    monkeypatch.setattr(sys, 'argv', ['tool', *map(str, args)])
    command.run(tool.main, tool.parser())
    return capsys.readouterr()

  return run


def finished(folder, seed=0, loss=1.0, **config):
  lines = [
    {
      'step': 10,
      'train/loss': 2 * loss,
      'train/top1': 0.25,
      'learning_rate': 0.1,
    },
    {
      'step': 20,
      'train/loss': loss,
      'train/top1': 0.5,
      'learning_rate': 0.01,
      'images_per_second': 1234.0,
      'data_wait': 0.125,
    },
    {'step': 20, 'eval/loss': 1.5, 'eval/top1': 0.375, 'eval/top5': 0.75},
  ]
  path = write_run(folder, lines, seed=seed, **config)
  text = (folder / 'config.json').read_text()
  text = text.replace(
    '"num_steps": 20', '"num_steps": 20, "num_eval_examples": 8'
  )
  (folder / 'config.json').write_text(text)
  return path


def test_report_shows_numbers_and_differences(run, tmp_path):
  paths = [
    finished(tmp_path / name, seed=i, **{'model.name': 'net<b>'})
    for i, name in enumerate(('one', 'two'))
  ]
  out = run(report, *paths, f'--output={tmp_path}/out/report').out
  assert re.search(
    r'^one +20 of 20 +1\.0000 +0\.5000 +1\.5000 +0\.3750', out, re.M
  )
  assert re.search(r'1,234 +12\.5%', out)
  assert re.search(r'^seed +0 +1$', out, re.M)
  assert 'model.name' not in out
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert '<td>seed</td><td>0</td><td>1</td>' in page
  assert 'data:image/png;base64,iVBORw0KGgo' in page
  # Nothing is fetched from anywhere.
  assert not re.search(r'(src|href)="(?!data:)', page)
  assert (tmp_path / 'out' / 'report.png').read_bytes()[:4] == b'\x89PNG'


def test_names_are_whole_where_the_last_part_is_not_enough(run, tmp_path):
  paths = [finished(tmp_path / x / 'run') for x in ('a', 'b')]
  out = run(report, *paths, f'--output={tmp_path}/report').out
  assert re.findall(r'^(\S+) +20 of 20', out, re.M) == ['a/run', 'b/run']


def test_a_page_holds_no_markup_of_a_config(run, tmp_path):
  paths = [
    finished(tmp_path / str(i), **{'model.name': f'<script>{i}'})
    for i in range(2)
  ]
  run(report, *paths, f'--output={tmp_path}/report')
  page = (tmp_path / 'report.html').read_text()
  assert '<script>' not in page
  assert '&lt;script&gt;1' in page


def test_folders_without_metrics_are_left_out(run, tmp_path):
  good, empty = finished(tmp_path / 'good'), tmp_path / 'empty'
  empty.mkdir()
  begun = write_run(tmp_path / 'begun', [])
  printed = run(report, empty, good, begun, f'--output={tmp_path}/report')
  first, second = printed.err.splitlines()
  assert first.startswith(f'left out: {empty} holds no run')
  assert second == f'left out: {begun} has no metrics yet.'
  assert 'good' in printed.out


def test_no_folder_left_is_an_error(run, tmp_path, capsys):
  with pytest.raises(SystemExit) as exit_:
    run(report, tmp_path, tmp_path / 'nowhere', f'--output={tmp_path}/report')
  assert exit_.value.code == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert lines[-1] == 'error: None of these folders has metrics of a run.'
  assert not (tmp_path / 'report.html').exists()


def test_a_band_of_runs(run, tmp_path):
  paths = [finished(tmp_path / f'{i}', seed=i, loss=1.0 + i) for i in range(3)]
  target = tmp_path / 'bands' / 'band.json'
  out = run(reference, *paths, f'--output={target}').out
  assert out == f'{target}: 3 seeds, 2 of train/loss, 1 of eval/top1\n'
  band = read_reference(str(target))
  assert band.bands['train/loss'] == {10: (4.0, 2.0), 20: (2.0, 1.0)}
  # One image of eight.
  assert band.bands['eval/top1'] == {20: (0.375, 0.125)}


def test_a_band_of_unfinished_runs_is_refused(run, tmp_path, capsys):
  paths = [finished(tmp_path / f'{i}', seed=i) for i in range(3)]
  metrics = tmp_path / '2' / 'metrics.jsonl'
  metrics.write_text(metrics.read_text().splitlines()[0] + '\n')
  with pytest.raises(SystemExit):
    run(reference, *paths, f'--output={tmp_path}/band.json')
  assert '/2 is not complete' in capsys.readouterr().err
