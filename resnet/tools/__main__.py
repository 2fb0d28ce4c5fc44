"""Runs a tool by its name: resnet NAME, or python -m resnet.tools NAME"""

import pathlib
import runpy
import sys
import textwrap

from resnet.errors import nearest
from resnet.output import print_error

_HERE = pathlib.Path(__file__).parent


def sentences() -> dict[str, str]:
  """Returns the first sentence about each tool, by name, importing none."""
  found = {}
  for path in sorted([*_HERE.glob('[a-z]*.py'), *_HERE.glob('*/__main__.py')]):
    text = path.read_text()
    if "if __name__ == '__main__':" in text:
      name = path.relative_to(_HERE).parts[0].removesuffix('.py')
      found[name] = text.partition('\n')[0].strip('"')
  return found


def main() -> int:
  """Runs a tool, or lists all; returns the exit code."""
  tools, name = sentences(), sys.argv[1] if sys.argv[1:] else '--help'
  if name in ('-h', '--help'):
    print('usage: resnet TOOL [ARGUMENTS]\n')
    for tool, sentence in tools.items():
      line = f'  {tool:11}{sentence}'
      print(textwrap.fill(line, 80, subsequent_indent=' ' * 13))
    print(
      '\nresnet TOOL --help explains a tool; resnet-train trains a network.'
    )
    return 0
  if name not in tools:
    return print_error(f'There is no tool {name!r}.{nearest(name, tools)}')
  del sys.argv[1]
  runpy.run_module(f'resnet.tools.{name}', run_name='__main__', alter_sys=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
