"""Says before a run what would go wrong in it, and how fast it will be.

  python -m resnet.tools.doctor --config=configs/resnet50.py --workdir=DIR

Takes the flags of main.py: --config (default: configs/digits.py), --workdir
and --config.FIELD=VALUE. One line a check: ok, warn, FAIL with what to mend, or
skip where a check before it failed. Exit code 2 where one FAILs. Nothing stays
of what it writes.
"""

import argparse
from collections.abc import Callable
import json
import signal
import sys
from typing import Any

from resnet import config as config_lib
from resnet.errors import InputError
from resnet.experiment import Experiment, resolve
from resnet.run.workdir import check_name
from resnet.tools import command
from resnet.tools.doctor import machine, rehearsal
from resnet.tools.doctor.machine import Finding


class _Visit:
  """Runs checks one after the other and prints what they find."""

  def __init__(self, *, as_json: bool):
    self._as_json = as_json
    self.findings: dict[str, Finding] = {}

  def check(
    self, name: str, check: Callable[..., Finding], *args: Any, needs: str = ''
  ) -> None:
    """Runs a check, unless the one that it `needs` failed."""
    if needs and self.findings[needs].status in ('FAIL', 'skip'):
      finding = Finding('skip', f'needs {needs}')
    else:
      try:
        finding = check(*args)
      except InputError as error:
        finding = Finding('FAIL', str(error))
      except Exception as error:  # A full disk, a device without memory, ...
        finding = Finding('FAIL', f'{type(error).__name__}: {error}')
    self.findings[name] = finding
    text = ' '.join(finding.text.split())
    if self._as_json:
      line = {'check': name, 'status': finding.status, 'text': text}
      print(json.dumps({**line, **finding.values}), flush=True)
    else:
      print(f'{finding.status:4} {name:10} {text}', flush=True)

  @property
  def has_failed(self) -> bool:
    return any(x.status == 'FAIL' for x in self.findings.values())


def main(args: argparse.Namespace) -> None:
  if args.workdir == '':
    raise InputError("--workdir='' is no folder: leave it out, or name one.")
  workdir = args.workdir or config_lib.default_workdir(args.config_path)
  check_name(workdir)
  visit = _Visit(as_json=args.json)
  visit.check('versions', machine.versions)
  visit.check('devices', machine.devices)
  if visit.findings['devices'].status != 'FAIL':
    _check_run(visit, resolve(args.config).at_last_size(), workdir)
  if visit.has_failed:
    sys.exit(2)


def _check_run(visit: _Visit, run: Experiment, workdir: str) -> None:
  visit.check('disk', machine.disk, run, workdir)
  visit.check('data', rehearsal.data, run)
  visit.check('classes', rehearsal.classes, run)
  visit.check('checkpoint', machine.checkpoint, run, workdir, needs='disk')
  visit.check('step', rehearsal.step, run)
  rate = visit.findings['step'].values.get('images_per_second')
  visit.check('input', rehearsal.input_speed, run, rate, needs='data')


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser(
    prog='python -m resnet.tools.doctor',
    usage='%(prog)s [--config=FILE] [--config.FIELD=VALUE ...]'
    ' [--workdir=DIR] [--json]',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  result.add_argument(
    '--workdir',
    metavar='DIR',
    help='of the run; default: runs/<config name>',
  )
  result.add_argument(
    '--json', action='store_true', help='a JSON object a line'
  )
  return result


if __name__ == '__main__':
  # Ctrl-C ends the program at once, but for the check that writes.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  command.run(main, parser())
