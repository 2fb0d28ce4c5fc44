"""The report and reference tools, on the files of made-up runs."""

import json
import re

from resnet.run.reference import read_reference
from tests.programs import assert_refused
from tests.run.made_runs import write_run


def finished(folder, seed=0, loss=1.0, tag='', **config):
  first = {'train/loss': 2 * loss, 'train/top1': 0.25, 'learning_rate': 0.1}
  last = {'train/loss': loss, 'train/top1': 0.5, 'learning_rate': 0.01}
  lines = [
    {'step': 10, **first},
    {'step': 20, **last, 'images_per_second': 1234.0, 'data_wait': 0.125},
    {'step': 20, 'eval/loss': 1.5, 'eval/top1': 0.375, 'eval/top5': 0.75},
  ]
  path = write_run(folder, lines, seed=seed, tag=tag, **config)
  fields = json.loads((folder / 'config.json').read_text())
  fields['derived']['num_eval_examples'] = 8
  (folder / 'config.json').write_text(json.dumps(fields))
  return path


def test_report_shows_numbers_and_differences(tool, tmp_path):
  paths = [
    finished(tmp_path / name, seed=i) for i, name in enumerate(('one', 'two'))
  ]
  result = tool('report', *paths, f'--output={tmp_path}/out/report.png')
  assert re.search(
    r'^one +20 of 20 +1\.0000 +0\.5000 +1\.5000 +0\.3750', result.stdout, re.M
  )
  assert re.search(r'1,234 +12\.5%', result.stdout)
  assert re.search(r'^seed +0 +1$', result.stdout, re.M)
  assert 'model.name' not in result.stdout
  assert (tmp_path / 'out' / 'report.png').read_bytes()[:4] == b'\x89PNG'


def test_folders_of_one_name_are_distinguished_and_empty_ones_skipped(
  tool, tmp_path
):
  paths = [finished(tmp_path / x / 'run') for x in ('a', 'b')]
  begun = write_run(tmp_path / 'begun', [])
  output = f'--output={tmp_path}/report.png'
  result = tool('report', tmp_path / 'none', *paths, begun, output)
  names = re.findall(r'^(\S+) +20 of 20', result.stdout, re.M)
  assert names == ['a/run', 'b/run']
  assert result.stderr.count('left out: ') == 2


def test_a_reference_is_the_band_of_finished_runs(tool, tmp_path):
  paths = [finished(tmp_path / f'{i}', seed=i, loss=1.0 + i) for i in range(3)]
  target = tmp_path / 'bands' / 'band.json'
  result = tool('reference', *paths, f'--output={target}')
  assert result.stdout == f'{target}: 3 seeds\n'
  bands = read_reference(str(target)).bands
  assert bands['train/loss'] == {10: (4.0, 2.0), 20: (2.0, 1.0)}
  # One image of eight.
  assert bands['eval/top1'] == {20: (0.375, 0.125)}
  for others, message in (
    ([], 'at least 3 runs'),
    ([paths[0]], '3 runs with 2 seeds'),
    ([finished(tmp_path / 'x', seed=7, tag=1)], "differ in tag: '' and 1"),
    ([finished(tmp_path / 'y', seed=8, loss=float('nan'))], 'not finite'),
  ):
    output = f'--output={target}'
    assert_refused(tool('reference', *paths[:2], *others, output), message)
  metrics = tmp_path / '2' / 'metrics.jsonl'
  metrics.write_text(metrics.read_text().splitlines()[0] + '\n')
  result = tool('reference', *paths, f'--output={target}')
  assert_refused(result, '/2 is not complete')
