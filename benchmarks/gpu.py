"""Measures everything on one GPU, for a machine without network.

  benchmarks/gpu.sh OUT --data=SETS
  benchmarks/gpu.sh OUT --parts=variants --limit=variants=400
  benchmarks/gpu.sh OUT --cpu --tiny

The parts run one after the other, each in its own process and for at most its
limit in seconds. After each measurement its row is in OUT/gpu.json and
OUT/gpu.md, so a part that fails or is stopped keeps what it has measured. The
output of all programs is in OUT/log.txt. What a part needs and does not find
(PyTorch, data) is reported as not run. Parts of an earlier run in OUT are kept
unless they run again. See docs/performance.md and benchmarks/gpu_parts.py.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from resnet.errors import InputError
from resnet.files import write_atomically
from resnet.tools import command

# Parts in their order, and their limits in seconds.
LIMITS = {
  'environment': 25,
  'correctness': 60,
  'resnet50': 155,
  'hlo': 45,
  'variants': 85,
  'cifar': 55,
  'imagenette': 40,
}


class Report:
  """The rows of all parts, in a folder; saved after each change."""

  def __init__(self, out):
    self._out = pathlib.Path(out)
    path = self._out / 'gpu.json'
    self.parts = json.loads(path.read_text()) if path.exists() else {}

  def begin(self, part):
    """Drops the rows of a part from an earlier run."""
    self.parts[part] = {}
    self._save()

  def set(self, part, name, figures=None, raw=None):
    """Sets a row: figures for the table, and all that was measured."""
    row = {'figures': figures, 'raw': raw}
    self.parts.setdefault(part, {})[name] = row
    self._save()

  def end(self, part, status):
    """Adds the row 'status', and the status to rows without figures."""
    for row in self.parts[part].values():
      if row['figures'] is None:
        row['figures'] = f'not run: {status}'
    self.set(part, 'status', status)

  def _save(self):
    rows = [('part', 'measured', 'result')]
    for part, found in self.parts.items():
      rows += [(part, name, _text(x['figures'])) for name, x in found.items()]
    table = command.table(rows, markdown=True)
    for name, text in (
      ('gpu.json', json.dumps(self.parts, indent=2)),
      ('gpu.md', table),
    ):
      write_atomically(str(self._out / name), f'{text}\n')


def _text(value):
  """Returns figures as text: a number, a spread, or several by name."""
  if isinstance(value, dict) and 'median' in value:
    return '{median} ({low} to {high})'.format(
      **{name: _text(number) for name, number in value.items()}
    )
  if isinstance(value, dict):
    return ', '.join(f'{name} {_text(x)}' for name, x in value.items())
  if isinstance(value, float):
    return f'{value:,.0f}' if value >= 1e4 else f'{value:.4g}'
  return '' if value is None else str(value)


def main(args):
  if args.out is None:
    raise InputError('type the folder for the results: benchmarks/gpu.sh OUT')
  # One GPU, whose memory the programs of a part share.
  os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if args.cpu:
    os.environ['JAX_PLATFORMS'] = 'cpu'
  elif (platform := _platform()) != 'gpu':
    raise InputError(
      f'JAX finds no GPU here, its devices are {platform!r}: type --cpu to'
      ' try the script on the CPU'
    )
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  args.out = os.path.abspath(args.out)
  os.makedirs(args.out, exist_ok=True)
  limits = LIMITS | dict(args.limit)
  failed = [part for part in args.parts if not _run(part, args, limits[part])]
  print(f'The results are in {args.out}/gpu.md')
  if failed:
    sys.exit(1)


def _platform():
  """Returns 'gpu' or 'cpu'; another process asks, which leaves no memory."""
  code = 'from resnet import backend; print(backend.devices()[0].platform)'
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  return found.stdout.strip() or 'missing'


def _run(part, args, limit):
  """Runs a part in another process; returns whether it did not fail."""
  words = [sys.executable, '-m', 'benchmarks.gpu_parts', part]
  start, status = time.monotonic(), 'done'
  Report(args.out).begin(part)
  with open(f'{args.out}/log.txt', 'ab') as log:
    process = subprocess.Popen(
      [*words, json.dumps(vars(args))],
      stdout=log,
      stderr=subprocess.STDOUT,
      process_group=0,
    )
    try:
      if code := process.wait(limit):
        status = f'failed with exit code {code}, see log.txt'
    except subprocess.TimeoutExpired:
      status = f'stopped at its limit of {limit:g} s'
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # Rivals are its children.
      process.wait()
  Report(args.out).end(part, status)
  print(f'{part}: {status} ({time.monotonic() - start:.0f} s)', flush=True)
  return not status.startswith('failed')


def parser():
  """Returns the parser of the command line."""
  result = command.Parser(doc=__doc__, prog='benchmarks/gpu.sh')
  add = result.add_argument
  add('out', nargs='?', default=os.environ.get('OUT'), metavar='OUT')
  add('--parts', type=_parts, default=list(LIMITS), help=', '.join(LIMITS))
  text = ', '.join(f'{part} {limit}' for part, limit in LIMITS.items())
  text = f'seconds for a part; defaults: {text}'
  add(
    '--limit',
    type=_limit,
    action='append',
    default=[],
    metavar='PART=SECONDS',
    help=text,
  )
  text = 'folder of prepared sets: cifar10_jpeg and imagenette_raw'
  add('--data', metavar='DIR', help=text)
  text = 'of ResNet-50, in this order; default: 256,64'
  add('--batch-sizes', type=_integers, default=[256, 64], help=text)
  text = 'of CIFAR nets, in this order; default: 1'
  add('--steps-per-call', type=_integers, default=[1], help=text)
  text = 'measurements of each program, in turn; default: 6'
  add('--rounds', type=command.positive, default=6, help=text)
  add('--cpu', action='store_true', help='allow a machine without GPU')
  add('--tiny', action='store_true', help='small networks, to try the script')
  return result


def _parts(text):
  found = text.split(',')
  if unknown := ', '.join({*found} - {*LIMITS}):
    raise argparse.ArgumentTypeError(f'{unknown}: not of {", ".join(LIMITS)}')
  return found


def _limit(text):
  part, _, seconds = text.partition('=')
  return _parts(part)[0], float(command.positive(seconds))


def _integers(text):
  return [command.positive(word) for word in text.split(',')]


if __name__ == '__main__':
  command.run(main, parser())
