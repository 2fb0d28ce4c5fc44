"""Trains or evaluates a residual network: python main.py --help"""

import os
import signal
import sys
import time
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

_START_TIME = time.time()
_DEFAULT_CONFIG = os.path.join(
  os.path.dirname(os.path.abspath(__file__)), 'configs', 'digits.py'
)

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  help_string='Config file; its fields are flags too: --config.batch_size=512.'
  ' Default: configs/digits.py.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run, made if need be; a run that is there goes on.'
  ' Default: runs/<config name>.',
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval'], 'Train, or evaluate a checkpoint.'
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  'best',
  ['best', 'latest'],
  'What --mode=eval evaluates; the best is by eval top-1.',
)
_REFERENCE = flags.DEFINE_string(
  'reference',
  None,
  'A file of resnet.tools.reference: training warns when it leaves the band.',
)


def _fail(message: str) -> int:
  """Says in one line what is wrong; returns the exit code of wrong input."""
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return 2


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; what is wrong in it ends the program."""
  try:
    rest = flags.FLAGS(argv)
    _ = _CONFIG.value.seed  # A config file that failed to load raises here.
  except SystemExit:
    if any(arg.lstrip('-').startswith('help') for arg in argv):
      sys.exit(0)  # absl would exit with 1.
    sys.exit(_fail('The config file ended the program.'))
  except (AttributeError, KeyError) as error:
    # ml_collections: the name, and the nearest one that there is.
    cause = error.args[0] if error.args else error
    while isinstance(cause, Exception) and cause.args:
      cause = cause.args[0]
    what = 'There is no config field'
    if ' has no attribute ' in str(cause):
      what = 'The config file is not one:'
    sys.exit(_fail(f'{what} {cause}'))
  except Exception as error:  # A config file may raise anything.
    # Of a traceback that ml_collections put into the message, the last line.
    message, _, trace = str(error).partition('Traceback')
    last_line = trace.strip().rpartition('\n')[2].strip()
    kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}:'
    sys.exit(_fail(f'{kind} {message} {last_line}'))
  if len(rest) > 1:
    sys.exit(_fail(f'{rest[1]!r} is not a flag; flags begin with --.'))
  return rest


def _default_workdir() -> str:
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, argument = path.partition(':')
  stem = os.path.splitext(os.path.basename(path))[0]
  return os.path.join('runs', f'{stem}_{argument}' if argument else stem)


def main(argv: list[str]) -> int:
  del argv
  # Until training handles it, Ctrl-C ends the program at once.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if _WORKDIR.value == '':
    return _fail("--workdir='' is no folder: leave it out, or name one.")
  # Imports that take seconds come after the flags are known to be good.
  from resnet import experiment
  from resnet.errors import InputError, RunError
  from resnet.training import evaluate, loop
  from resnet.training.reference import read_reference

  logging.set_verbosity(logging.ERROR)
  workdir = _default_workdir() if _WORKDIR.value is None else _WORKDIR.value
  try:
    reference = None
    if _REFERENCE.value is not None:
      reference = read_reference(_REFERENCE.value)
    if reference and _MODE.value == 'eval':
      return _fail('--reference is for training: leave it out of --mode=eval.')
    run = experiment.resolve(_CONFIG.value)
    if _MODE.value == 'eval':
      return evaluate.run(run, workdir, _CHECKPOINT.value)
    return loop.run(run, workdir, _START_TIME, reference)
  except InputError as error:
    return _fail(str(error))
  except Exception as error:
    if isinstance(error, RunError):
      _fail(str(error))
    else:
      traceback.print_exc()
    # After a failed save, Orbax's threads would keep the process for ever.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == '__main__':
  if not any(arg.lstrip('-').split('=')[0] == 'config' for arg in sys.argv):
    # Not a default of the flag: that would be read before the other flags.
    sys.argv.insert(1, f'--config={_DEFAULT_CONFIG}')
  app.run(main, flags_parser=_parse_flags)
