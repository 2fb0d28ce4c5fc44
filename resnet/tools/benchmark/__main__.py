"""Measures the speed of a step, of evaluation or of reading on this machine.

  python -m resnet.tools.benchmark step --config=configs/resnet50.py \\
    --also='model.remat=True'

Takes --config and --config.FIELD=VALUE as main.py does. Measures several
rounds, in each of which all programs take turns. Prints medians, quartiles, and
ratios of measurements of the same round. See docs/performance.md;
benchmarks/compare.py measures Flax's and PyTorch's programs in the same way.
"""

import argparse
from typing import Any

from resnet.tools import command
from resnet.tools.benchmark import input, step, timing

SUBJECTS = {'step': step, 'eval': step, 'input': input}
HELP = {
  'step': 'a training step, with images on the device',
  'eval': 'a batch of evaluation, with images on the device',
  'input': 'the input pipeline, from the disk to the device',
}


def main(args: argparse.Namespace) -> None:
  """Measures the chosen subject and saves the figures."""
  timing.save_figures(args.json, SUBJECTS[args.subject].main(args))


def create_parser(
  text: str | None = __doc__, **options: Any
) -> tuple[command.Parser, dict[str, argparse.ArgumentParser]]:
  """Returns the parser of the command line, and those of its subjects."""
  result = command.ConfigParser('benchmark', text, **options)
  subparsers = result.add_subparsers(
    dest='subject', required=True, parser_class=command.Parser
  )
  subjects = {}
  for subject, module in SUBJECTS.items():
    doc = (
      f'Measures {HELP[subject]}.\n\n'
      f'  {result.prog} {subject} --config=configs/resnet50.py'
    )
    sub = subparsers.add_parser(subject, help=HELP[subject], doc=doc)
    subjects[subject] = sub
    timing.add_arguments(sub, module.COUNTS)
    text = "compare with a changed config: 'FIELD=VALUE FIELD=VALUE'"
    add = sub.add_argument
    add('--also', action='append', default=[], metavar='FIELDS', help=text)
    if module is step:
      text = 'write a trace for xprof or TensorBoard to DIR'
      add('--profile', metavar='DIR', help=text)
  return result, subjects


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  return create_parser()[0]


if __name__ == '__main__':
  command.run(main, parser())
