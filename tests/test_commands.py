"""The commands in the README and the docs are valid; the quick ones run."""

import glob
import importlib
import re
import shlex

import pytest

from resnet import config as config_lib
from resnet import fields, main
from resnet.weights.sources import PACKAGED
from tests.run.made_runs import write_run
from tests.test_links import PAGES, ROOT, read

PICTURES = ROOT / 'docs' / 'pictures'
# What pages write for a value that the reader knows.
PLACEHOLDERS = {
  '--config=...': '--config=configs/digits.py',
  'SOURCE': PACKAGED,
  'DATASET': 'digits',
  '=$seed': '=0',
  '=N': '=2',
  '=I': '=0',
  ' ...': '',
}
# The files in docs/results name the commands of their time.
TEXTS = [page for page in PAGES if 'results' not in page.parts]
INLINE = r'`(?:python )?((?:main\.py|-m resnet\.tools\.[a-z]+) [^`]+)`'
# Commands of others, or of the shell.
OTHERS = {'apt-get', 'cd', 'curl', 'docker', 'done', 'export', 'for', 'git'}
# Tools whose commands run here in seconds, unless they need one of these.
QUICK = {'export', 'predict', 'report', 'summary', 'weights'}
NEEDS = {'runs/imagenette', 'runs/resnet50', 'runs/cifar10', '--model=resnet50'}
NEEDS |= {'--format=onnx', '--format=openvino'}


def commands(page):
  """Yields the commands of a page as lists of words, without comments."""
  text = page.read_text()
  blocks = ''.join(re.findall('^```bash\n(.*?)^```', text, re.M | re.S))
  lines = blocks.replace('\\\n', '').splitlines()
  lines += [f'python {line}' for line in re.findall(INLINE, read(page))]
  for line in lines:
    for old, new in PLACEHOLDERS.items():
      line = re.sub(rf'{re.escape(old)}(?!\w)', new, line)
    words = shlex.split(line.replace('.venv/bin/', ''), comments=True)
    while '&&' in words:
      yield words[: words.index('&&')]
      words = words[words.index('&&') + 1 :]
    yield [word for word in words if word != 'PYTHONPATH=.']


def tool_of(words):
  """Returns the name of a tool and its arguments, or None."""
  match words:
    case ['python', '-m', module, *args] if 'resnet.tools.' in module:
      return module.rpartition('.')[2], args
    case ['resnet', name, *args]:
      return name, args


def check_main(args):
  """Checks the flags of main.py, and the fields of its config."""
  ours = [arg for arg in args if arg.startswith('--config')]
  config, _ = config_lib.read(['main.py', *ours])
  fields.check(config_lib.flatten(config))
  for arg in set(args) - {*ours, '--help'}:
    name, _, value = arg.removeprefix('--').partition('=')
    main.FLAGS[name].parser.parse(value)


def check(words):
  """Raises an error if a command is wrong."""
  match words:
    case _ if tool := tool_of(words):
      module = importlib.import_module(f'resnet.tools.{tool[0]}')
      if hasattr(module, '__path__'):
        module = importlib.import_module(f'{module.__name__}.__main__')
      module.parser().parse_args(tool[1])
    case ['python', 'main.py', *args] | ['resnet-train', *args]:
      check_main(args)
    case ['python', script, *_]:
      assert (ROOT / script).is_file()
    case ['make', target]:
      assert f'\n{target}:' in (ROOT / 'Makefile').read_text()
    case ['pip', 'install', *args]:
      files = [arg for arg in args if arg.endswith('.txt')]
      assert all((ROOT / file).is_file() for file in files)
    case [name, *_] if name.startswith('scripts/'):
      assert (ROOT / name).is_file()
    case _:
      assert not words or words == ['resnet'] or words[0] in OTHERS


@pytest.mark.parametrize('page', TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_pages_are_valid(page):
  for words in commands(page):
    print(*words)  # pytest shows the last one if it is wrong.
    check(words)


@pytest.mark.slow
def test_quick_commands_run(tool, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_run(tmp_path / 'runs' / 'digits', [{'step': 1, 'train/loss': 1.0}])
  files = {'cat.jpg': PICTURES / 'cat.jpg', 'FOLDER': PICTURES}
  ran = set()
  for words in [words for page in TEXTS for words in commands(page)]:
    name, args = tool_of(words) or ('', [])
    if name in QUICK and not NEEDS.intersection(args):
      given = [str(files.get(arg, arg)) for arg in args]
      given = [y for x in given for y in (glob.glob(x) or [x])]
      result = tool(name, *given)
      assert result.returncode == 0, (words, result.stderr)
      ran.add((name, *args))
  assert {name for name, *_ in ran} == QUICK and len(ran) > 9
