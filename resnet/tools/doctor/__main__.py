"""Checks before a run whether it would fail, and how fast it will be.

  python -m resnet.tools.doctor --config=configs/resnet50.py --workdir=DIR

Takes the flags of main.py: --config (default: configs/digits.py), --workdir
and --config.FIELD=VALUE. Prints a line for each check: ok, warn, FAIL with what
to fix, or skip if a check that it needs has failed. The exit code is 2 if a
check FAILs. Removes all files that it writes.
"""

import argparse
import signal
import sys
from typing import Any

from resnet import config as config_lib
from resnet.errors import InputError
from resnet.experiment import resolve
from resnet.run.workdir import check_name
from resnet.tools import command
from resnet.tools.doctor import checks
from resnet.tools.doctor.checks import Finding


def main(args: argparse.Namespace) -> None:
  workdir = args.workdir or config_lib.default_workdir(args.config_path)
  check_name(workdir)
  found: dict[str, Finding] = {}

  def run(name: str, check: Any, *given: Any, needs: str = '') -> None:
    """Runs and prints a check, or skips it if the check it `needs` failed."""
    try:
      finding = Finding('skip', f'needs {needs}')
      if not needs or found[needs].status != 'FAIL':
        finding = check(*given)
    except InputError as error:
      finding = Finding('FAIL', str(error))
    except Exception as error:  # A full disk, a device out of memory, ...
      finding = Finding('FAIL', f'{type(error).__name__}: {error}')
    found[name] = finding
    text = ' '.join(finding.text.split())
    print(f'{finding.status:4} {name:10} {text}', flush=True)

  run('versions', checks.versions)
  run('devices', checks.devices)
  if found['devices'].status != 'FAIL':
    experiment = resolve(args.config).at_last_size()
    run('disk', checks.disk, experiment, workdir)
    run('data', checks.data, experiment)
    run('checkpoint', checks.checkpoint, experiment, workdir, needs='disk')
    run('step', checks.step, experiment)
    rate = found['step'].rate
    run('input', checks.input_speed, experiment, rate, needs='data')
  if any(finding.status == 'FAIL' for finding in found.values()):
    sys.exit(2)


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser('doctor', __doc__)
  text = 'folder of the run; default: runs/<config name>'
  result.add_argument('--workdir', metavar='DIR', help=text)
  return result


if __name__ == '__main__':
  # Ctrl-C ends the program immediately, except in the check that writes.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  command.run(main, parser())
