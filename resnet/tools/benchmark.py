"""Measures parts of a run on this machine.

  python -m resnet.tools.benchmark input --config=configs/resnet50.py

`input`: how fast images come from the disk to the device, stage by stage, per
core and in all; see docs/input.md.
"""

import argparse

from resnet.tools import benchmark_input, command

_SUBJECTS = {'input': benchmark_input}


def main(args: argparse.Namespace) -> None:
  _SUBJECTS[args.subject].main(args)


def parser() -> command.Parser:
  """Returns what reads the command line."""
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
