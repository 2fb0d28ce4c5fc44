"""Measures the speed of a step, of evaluation or of reading on this machine.

  python -m resnet.tools.benchmark step --config=configs/resnet50.py \\
    --against=flax,torch

Takes --config and --config.FIELD=VALUE as main.py does. Measures all programs
in turn, for several rounds. Prints medians, quartiles, and ratios between
measurements of a round. See docs/performance.md.
"""

import argparse
from typing import Any

from resnet.tools import command
from resnet.tools.benchmark import input, step, timing

_SUBJECTS = {'step': step, 'eval': step, 'input': input}


def main(args: argparse.Namespace) -> None:
  """Measures the chosen subject and saves the figures."""
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
      text = 'write a trace for xprof or TensorBoard to DIR'
      subject.add_argument('--profile', metavar='DIR', help=text)
  return result


def _add_rivals(subject: argparse.ArgumentParser, module: Any) -> None:
  known = ', '.join(module.RIVALS)

  def listed(text: str) -> list[str]:
    names = text.split(',')
    if unknown := ', '.join(sorted(set(names) - set(module.RIVALS))):
      raise argparse.ArgumentTypeError(f'{unknown} is not one of {known}')
    return names

  text = f'programs to compare with, of {known}'
  subject.add_argument(
    '--against', type=listed, default=[], metavar='RIVALS', help=text
  )
  for name, package in module.RIVALS.items():
    if package:
      text = f'an interpreter with {package}; default: this one'
      subject.add_argument(f'--{name}-python', metavar='PYTHON', help=text)
  text = "compare with other fields of the config: 'FIELD=VALUE FIELD=VALUE'"
  subject.add_argument(
    '--also', action='append', default=[], metavar='FIELDS', help=text
  )


if __name__ == '__main__':
  command.run(main, parser())
