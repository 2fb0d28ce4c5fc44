"""Measures parts of a run on this machine.

  python -m resnet.tools.benchmark step --config=configs/resnet50.py \\
    --against=flax,torch

Takes --config and --config.FIELD=VALUE as main.py does. Everything is measured
several times, in turn with what it is compared with. Prints medians, quartiles,
and ratios of neighbouring measurements. See docs/performance.md.
"""

import argparse
from typing import Any

from resnet.tools import command
from resnet.tools.benchmark import input, step, timing

_SUBJECTS = {'step': step, 'eval': step, 'input': input}


def main(args: argparse.Namespace) -> None:
  timing.save_figures(args.json, _SUBJECTS[args.subject].main(args))


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser('benchmark', __doc__)
  subjects = result.add_subparsers(
    dest='subject', required=True, parser_class=command.Parser
  )
  for name, module in _SUBJECTS.items():
    subject = subjects.add_parser(name, help=module.HELP)
    timing.add_arguments(subject, module.COUNTS)
    _add_rivals(subject, module)
    if module is step:
      subject.add_argument(
        '--profile',
        metavar='DIR',
        help='where to write a trace for xprof or TensorBoard',
      )
  return result


def _add_rivals(subject: argparse.ArgumentParser, module: Any) -> None:
  known = ', '.join(module.RIVALS)

  def listed(text: str) -> list[str]:
    names = text.split(',')
    if unknown := ', '.join(sorted(set(names) - set(module.RIVALS))):
      raise argparse.ArgumentTypeError(f'{unknown} is none of {known}')
    return names

  subject.add_argument(
    '--against',
    type=listed,
    default=[],
    metavar='RIVALS',
    help=f'of {known}: in turn with ours',
  )
  for name, package in module.RIVALS.items():
    if package:
      subject.add_argument(
        f'--{name}-python',
        metavar='PYTHON',
        help=f'an interpreter that has {package}; default: this one',
      )
  subject.add_argument(
    '--also',
    action='append',
    default=[],
    metavar='FIELDS',
    help="ours with other fields, in turn likewise: 'FIELD=VALUE FIELD=VALUE'",
  )


if __name__ == '__main__':
  command.run(main, parser())
