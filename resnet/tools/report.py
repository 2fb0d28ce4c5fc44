"""Shows runs side by side: curves, final numbers, where they differ.

  python -m resnet.tools.report runs/digits runs/other --output=report

Writes report.png, and report.html: one page with all of it that needs no
network.
"""

import argparse
import base64
from collections.abc import Sequence
import html
import os
import sys

from resnet.errors import InputError
from resnet.files import write_atomically, writing
from resnet.plots import figures
from resnet.plots.curves import draw_curves
from resnet.run.history import History, read_history
from resnet.tools import command

Rows = list[list[str]]

# Title, metric, format.
_COLUMNS = (
  ('train loss', 'train/loss', '.4f'),
  ('train top-1', 'train/top1', '.4f'),
  ('eval loss', 'eval/loss', '.4f'),
  ('eval top-1', 'eval/top1', '.4f'),
  ('ema top-1', 'eval_ema/top1', '.4f'),
  ('eval top-5', 'eval/top5', '.4f'),
  ('images/s', 'images_per_second', ',.0f'),
  ('data wait', 'data_wait', '.1%'),
)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px sans-serif; margin: 2em auto; max-width: 95em }}
table {{ border-collapse: collapse; margin-bottom: 2em }}
td {{ border-bottom: 1px solid #ccc; padding: .2em .8em }}
tr:first-child {{ font-weight: bold }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1>
<img alt="loss, error, learning rate, speed, data wait"
  src="data:image/png;base64,{png}">
<h2>Final numbers</h2>
{numbers}
<h2>Where they differ</h2>
{differences}
</html>
"""


def main(args: argparse.Namespace) -> None:
  """Reads the runs, draws and prints them."""
  histories = []
  for workdir in args.workdirs:
    try:
      history = read_history(workdir)
      if not history.lines:
        raise InputError(f'{workdir} has no metrics yet.')
      histories.append(history)
    except InputError as error:
      print(f'left out: {error}', file=sys.stderr)
  if not histories:
    raise InputError('None of these folders has metrics of a run.')
  names = _names([history.workdir for history in histories])
  numbers = _numbers(histories, names)
  differences = _differences(histories, names)
  png = figures.encode(draw_curves(histories, names), 'png')
  page = _PAGE.format(
    title=html.escape(', '.join(names)),
    png=base64.b64encode(png).decode(),
    numbers=_html_table(numbers),
    differences=_html_table(differences),
  )
  with writing(f'--output={args.output}'):
    os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
    write_atomically(f'{args.output}.png', png)
    write_atomically(f'{args.output}.html', page)
  print(_text_table(numbers))
  if len(differences) > 1:
    print(f'\n{_text_table(differences)}')
  print(f'\n{args.output}.png, {args.output}.html')


def _names(workdirs: Sequence[str]) -> list[str]:
  """Returns the last parts of the paths, or more of them where these agree."""
  paths = [os.path.abspath(workdir) for workdir in workdirs]
  last = [os.path.basename(path) for path in paths]
  if len(set(last)) == len(last):
    return last
  above = os.path.commonpath([os.path.dirname(path) for path in paths])
  return [os.path.relpath(path, above) for path in paths]


def _numbers(histories: Sequence[History], names: Sequence[str]) -> Rows:
  rows = [['run', 'step', *(title for title, _, _ in _COLUMNS)]]
  for history, name in zip(histories, names, strict=True):
    step = history.lines[-1]['step']
    row = [name, f'{step:,} of {history.num_steps:,}']
    for _, metric, form in _COLUMNS:
      value = history.last(metric)
      row.append('none' if value is None else format(value, form))
    rows.append(row)
  return rows


def _differences(histories: Sequence[History], names: Sequence[str]) -> Rows:
  """Returns the fields of the configs, hardware and commit that differ."""
  sides = [
    {
      **{field: repr(value) for field, value in history.config.items()},
      'hardware': ', '.join(history.hardware) or 'unknown',
      'commit': ', '.join(history.commits) or 'unknown',
    }
    for history in histories
  ]
  rows = [['field', *names]]
  for field in dict.fromkeys(field for side in sides for field in side):
    values = [side.get(field, 'none') for side in sides]
    if len(set(values)) > 1:
      rows.append([field, *values])
  return rows


def _text_table(rows: Rows) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(f'{c:<{width}}' for c, width in zip(row, widths, strict=True))
    for row in rows
  ]
  return '\n'.join(map(str.rstrip, lines))


def _html_table(rows: Rows) -> str:
  lines = []
  for row in rows:
    cells = ''.join(f'<td>{html.escape(cell)}</td>' for cell in row)
    lines.append(f'<tr>{cells}</tr>')
  return '<table>\n' + '\n'.join(lines) + '\n</table>'


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.report',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  result.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  result.add_argument(
    '--output', default='report', metavar='PATH', help='without .png and .html'
  )
  return result


if __name__ == '__main__':
  command.run(main, parser())
