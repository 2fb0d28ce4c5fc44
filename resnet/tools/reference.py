"""Makes the band of a reference from finished runs of several seeds.

  python -m resnet.tools.reference runs/digits_seed* --output=band.json

Training warns when a run leaves it: python main.py --reference=band.json
"""

import argparse
import os

from resnet.errors import InputError
from resnet.fields import FREE_FIELDS
from resnet.files import write_atomically
from resnet.run.history import read_history
from resnet.run.reference import METRICS, make_reference
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  histories = [read_history(workdir) for workdir in args.workdirs]
  for history in histories:
    if not history.is_complete:
      raise InputError(f'{history.workdir} is not complete: train it first.')
  # The folder and the speed of reading change no result.
  configs = [
    {k: v for k, v in history.config.items() if k not in FREE_FIELDS}
    for history in histories
  ]
  reference = make_reference(
    configs,
    [{name: h.series(name) for name in METRICS} for h in histories],
    histories[0].derived['num_eval_examples'],
  )
  try:
    os.makedirs(os.path.dirname(args.output) or '.', exist_ok=True)
    write_atomically(args.output, reference.save_text())
  except OSError as error:
    raise InputError(
      f'--output={args.output} cannot be written: {error.strerror}.'
    ) from None
  points = ', '.join(f'{len(b)} of {m}' for m, b in reference.bands.items())
  print(f'{args.output}: {reference.num_seeds} seeds, {points}')


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser(
    prog='python -m resnet.tools.reference',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  result.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  result.add_argument('--output', required=True, metavar='FILE')
  return result


if __name__ == '__main__':
  command.run(main, parser())
