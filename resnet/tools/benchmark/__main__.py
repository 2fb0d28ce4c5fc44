"""Measures parts of a run on this machine.

  python -m resnet.tools.benchmark step --config=configs/resnet50.py \\
    --against=flax,torch

Takes --config and --config.FIELD=VALUE as main.py does. Everything is measured
several times, in turn with what it is compared with: what is told are medians,
quartiles, and ratios of neighbours. See docs/performance.md.
"""

import argparse

from resnet.tools import command
from resnet.tools.benchmark import checkpoint, input, loop, startup, step

_SUBJECTS = {
  'step': step,
  'eval': step,
  'input': input,
  'loop': loop,
  'startup': startup,
  'checkpoint': checkpoint,
}


def main(args: argparse.Namespace) -> None:
  _SUBJECTS[args.subject].main(args)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser(
    prog='python -m resnet.tools.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  subjects = result.add_subparsers(
    dest='subject', required=True, parser_class=command.Parser
  )
  for name, module in _SUBJECTS.items():
    module.add_arguments(subjects.add_parser(name, help=module.HELP))
  return result


if __name__ == '__main__':
  command.run(main, parser())
