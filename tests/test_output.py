"""Progress on stderr: lines in a file, a bar on a terminal."""

import io
import sys

from resnet import output


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_in_a_file_is_a_line_every_30_seconds(monkeypatch, capsys):
  clock = [0.0]
  monkeypatch.setattr(output.time, 'monotonic', lambda: clock[-1])
  with (
    output.ProgressBar('prepared', 60_000) as bar,
    output.ProgressBar('compared', None, 'files') as unknown,
    output.ProgressBar('read', 9, is_shown=False) as hidden,
  ):
    for now in (10.0, 20.0, 30.0, 40.0, 60.0):
      clock.append(now)
      bar.update(6000)
    unknown.update(150)
    hidden.update(9)
    clock.append(90.0)
    bar.update(99_000)
  assert capsys.readouterr() == (
    '',
    'prepared 18,000 of 60,000 images, 600 images/s, left 01:10\n'
    'prepared 30,000 of 60,000 images, 400 images/s, left 01:15\n'
    'compared 150 files, 2.5 files/s\n'
    'prepared 60,000 of 60,000 images, 1,000 images/s, left 00:00\n',
  )


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with output.ProgressBar('prepared', 6) as bar:
    bar.update(3)
  assert '\rprepared:   0%' in terminal.getvalue()
  assert '\n' not in terminal.getvalue()
