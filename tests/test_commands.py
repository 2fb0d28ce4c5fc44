"""The commands in the README and the docs are valid; the quick ones run."""

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
  # The commands of the installed package.
  'resnet-train': 'python main.py',
  'resnet predict': 'python -m resnet.tools.predict',
}
# The files in docs/results name the commands of their time.
TEXTS = [page for page in PAGES if 'results' not in page.parts]
INLINE = r'`(?:python )?((?:main\.py|-m resnet\.tools\.[a-z]+) [^`]+)`'
# Commands of others, or of the shell.
OTHERS = {'cd', 'curl', 'docker', 'done', 'export', 'for', 'git', 'resnet'}
OTHERS |= {'apt-get', 'uv'}
# Tools whose commands run here in seconds, unless they need one of these.
QUICK = {'export', 'predict', 'report', 'summary', 'weights'}
NEEDS = {'runs/imagenette', 'runs/resnet50', 'runs/cifar10', '--model=resnet50'}
NEEDS |= {'--format=onnx', '--format=openvino', 'NAME', '--all'}


def commands(page):
  """Yields the commands of a page as lists of words, without comments."""
  text = page.read_text()
  blocks = ''.join(re.findall('^```bash\n(.*?)^```', text, re.M | re.S))
  lines = blocks.replace('\\\n', '').splitlines()
  lines += [f'python {line}' for line in re.findall(INLINE, read(page))]
  for line in lines:
    line = re.sub(r'\S+/bin/', '', line)
    for old, new in PLACEHOLDERS.items():
      line = re.sub(rf'{re.escape(old)}(?!\w)', new, line)
    words = shlex.split(line, comments=True)
    while '&&' in words:
      yield words[: words.index('&&')]
      words = words[words.index('&&') + 1 :]
    yield [word for word in words if not re.match('[A-Z_]+=', word)]


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
    case ['python', '-m', name, *args] if name.startswith('resnet.tools.'):
      module = importlib.import_module(name)
      if hasattr(module, '__path__'):
        module = importlib.import_module(f'{name}.__main__')
      module.parser().parse_args(args)
    case ['python', 'main.py', *args]:
      check_main(args)
    case ['python', '-m', 'pytest', *args]:
      assert all((ROOT / x).exists() for x in args if x.startswith('tests/'))
    case ['python', script, *_]:
      assert (ROOT / script).is_file()
    case ['make', target]:
      assert f'\n{target}:' in (ROOT / 'Makefile').read_text()
    case ['pip', 'install', *args]:
      files = [arg for arg in args if arg.endswith('.txt')]
      assert all((ROOT / file).is_file() for file in files)
    case [name, *_] if name.endswith('.sh'):
      assert (ROOT / name).is_file()
    case _:
      assert not words or words[0] in OTHERS


@pytest.mark.parametrize('page', TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_pages_are_valid(page):
  for words in commands(page):
    print(*words)  # pytest shows the last one if it is wrong.
    check(words)


@pytest.mark.slow
def test_quick_commands_run(tool, tmp_path, monkeypatch):
  line = {'step': 1, 'train/loss': 1.0, 'learning_rate': 0.1}
  run = write_run(tmp_path / 'run', [line])
  files = {'cat.jpg': PICTURES / 'cat.jpg', 'FOLDER': PICTURES, 'runs/*': run}
  ran = set()
  for words in [words for page in TEXTS for words in commands(page)]:
    name, args = ' '.join(words[2:3]).rpartition('.')[2], tuple(words[3:])
    if name in QUICK and not NEEDS & {*args} and (name, args) not in ran:
      folder = tmp_path / str(len(ran))
      folder.mkdir()
      monkeypatch.chdir(folder)
      found = {arg: ROOT / arg for arg in args if (ROOT / arg).is_file()}
      result = tool(name, *((files | found).get(arg, arg) for arg in args))
      assert result.returncode == 0, (words, result.stderr)
      ran.add((name, args))
  assert {name for name, _ in ran} == QUICK and len(ran) > 9
