"""What all tools do alike."""

import os

from resnet.tools import command, summary


def test_ctrl_c_ends_a_tool_in_one_line(tool, monkeypatch):
  def interrupt(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(summary, 'main', interrupt)
  result = tool('summary', 'resnet18')
  assert result.returncode == 130
  assert result.stderr == 'error: Stopped by Ctrl-C.\n'


def test_a_tilde_in_any_flag_is_the_home_folder():
  parser = command.Parser()
  parser.add_argument('--out')
  assert parser.parse_args(['--out=~/x']).out == os.path.expanduser('~/x')
  assert parser.parse_args(['--out=a~/x']).out == 'a~/x'
