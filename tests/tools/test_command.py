"""What all tools do alike."""

import itertools
import os
import re
import runpy
import sys

import pytest

from resnet.tools import __main__ as dispatcher
from resnet.tools import command, summary
from tests.programs import run

# The contract: scripts and docs call them.
TOOLS = [
  *('aot', 'benchmark', 'doctor', 'evaluate', 'export', 'predict', 'prepare'),
  *('probe', 'reference', 'report', 'reproduce', 'serve', 'summary', 'weights'),
]


@pytest.fixture
def resnet(monkeypatch, capsys):
  """(*ARGS) -> exit code, stdout and stderr of the command `resnet`."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['resnet', *args])
    return dispatcher.main(), *capsys.readouterr()

  return run


def test_resnet_lists_the_tools_with_a_sentence_each(resnet):
  assert list(dispatcher.sentences()) == TOOLS
  assert all(text.endswith('.') for text in dispatcher.sentences().values())
  code, out, err = resnet()
  assert (code, err) == (0, '') and resnet('--help') == (code, out, err)
  assert all(f'\n  {name} ' in out for name in TOOLS)
  assert max(map(len, out.splitlines())) <= 80


COMMANDS = [
  *((name,) for name in TOOLS),
  *(('weights', name) for name in ('convert', 'inspect')),
  *(('benchmark', name) for name in ('step', 'eval', 'input')),
]


@pytest.mark.parametrize('words', COMMANDS, ids=' '.join)
def test_help_has_an_example_groups_and_a_text_for_each_flag(
  words, tool, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '80')
  name, *rest = words
  result = tool(name, *rest, '--help')
  assert (result.returncode, result.stderr) == (0, '')
  assert max(map(len, result.stdout.splitlines())) <= 80
  _, about, *groups = re.split(r'\n\n(?=\S)', result.stdout)
  sentence, example = about.split('\n\n')[:2]
  assert re.fullmatch(r'[A-Z].*\.', sentence)
  assert re.search(rf'^  .*python -m resnet.tools.{" ".join(words)}', example)
  for group in groups:
    if not re.match(r'[\w, ]+:\n  \S', group):  # Part of the description.
      continue
    assert group.count('\n  -') <= 8
    for line, below in itertools.pairwise([*group.splitlines(), '']):
      if re.match(r'  \S', line):  # Its text is behind it or below it.
        assert re.search(r'\S  +\S', line) or below.startswith('    ')


def test_help_of_main_has_an_example_and_groups():
  result = run('main.py', '--help')
  assert (result.returncode, result.stderr) == (0, '')
  assert max(map(len, result.stdout.splitlines())) <= 80
  sentence, example, *_ = result.stdout.split('\n\n')
  assert re.fullmatch(r'[A-Z].*\.', sentence)
  assert example.startswith('  python main.py --')
  assert re.findall(r'^(\S.*):$', result.stdout, re.M) == [
    *('run', 'several processes')
  ]
  assert '--config.batch_size=512' in result.stdout
  assert 'None' not in result.stdout


def test_resnet_runs_a_tool_as_python_m_does(resnet, monkeypatch):
  calls = []

  def run_module(name, **options):
    calls.append((name, options, sys.argv))

  monkeypatch.setattr(runpy, 'run_module', run_module)
  assert resnet('predict', 'cat.jpg', '--help') == (0, '', '')
  options = {'run_name': '__main__', 'alter_sys': True}
  argv = ['resnet', 'cat.jpg', '--help']
  assert calls == [('resnet.tools.predict', options, argv)]


def test_resnet_refuses_an_unknown_tool_with_the_nearest(resnet):
  code, out, err = resnet('predcit', 'cat.jpg')
  assert (code, out) == (2, '')
  assert err == "error: There is no tool 'predcit'. Did you mean: predict?\n"


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
