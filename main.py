"""Trains or evaluates a residual network: python main.py --help"""

from collections.abc import Callable
import errno
import logging as python_logging
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from resnet import config as config_lib
from resnet.errors import InputError, RunError

_START_TIME = time.time()

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
  'mode',
  'train',
  ['train', 'eval', 'replay'],
  'Train, evaluate a checkpoint, or look into a step that was not finite.',
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  'best',
  ['best', 'latest'],
  'What --mode=eval evaluates; the best is by eval top-1, that of the moving'
  ' averages where the run keeps them.',
)
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
  'allow_config_change',
  False,
  'Let a run continue with other values of fields that only say what it logs,'
  ' keeps and tolerates, and with more epochs where the learning rate of the'
  ' steps so far stays the same.',
)
_REPLAY_STEP = flags.DEFINE_integer(
  'replay_step',
  None,
  'The step that --mode=replay looks into; default: the last bad one.',
)
_REFERENCE = flags.DEFINE_string(
  'reference',
  None,
  'A file of resnet.tools.reference: training warns when it leaves the band.',
)
_KEEP_PROGRAMS = flags.DEFINE_bool(
  'keep_programs',
  True,
  'Keep compiled programs for later runs, in $JAX_COMPILATION_CACHE_DIR or in'
  ' ~/.cache/resnet.',
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of process 0, where several processes are started by hand; with'
  ' --num_processes and --process_id.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes the run has.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, from 0.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  None,
  'Whether this is one process of many on a TPU pod, Slurm or GKE. By default'
  ' JAX finds out; --distributed makes it an error to find none.',
)
_JOIN_SECONDS = flags.DEFINE_integer(
  'join_seconds', 300, 'How long to wait for the other processes to come.'
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  'heartbeat_seconds',
  60,
  'How long another process may be silent before it counts as dead.',
)


# What a disk says when it is full, over quota, read-only or broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def _fail(message: str, code: int = 2) -> int:
  """Says in one line what is wrong; returns the exit code, 2 for bad input."""
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return code


class _Echoes:
  """What threads cannot raise, shown only where it may be news.

  After a save has failed, the threads of Orbax and TensorStore tell of it for
  as long as the process lives, some of them hundreds of times.
  """

  def __init__(self):
    # The garbage collector may call a hook within another.
    self._lock = threading.RLock()
    self._ended = False
    sys.unraisablehook = self._show(sys.__unraisablehook__)
    threading.excepthook = self._show(threading.__excepthook__)

  def end(self) -> None:
    """From here on nothing is shown: the program says why it ends."""
    with self._lock:
      self._ended = True

  def _show(self, hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    def show(args: Any) -> None:
      with self._lock:
        if not self._ended and str(args.exc_value) != 'Event loop is closed':
          hook(args)

    return show


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; what is wrong in it ends the program."""
  # Orbax and its event loops log tracebacks of errors that are told below.
  logging.set_verbosity(logging.FATAL)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  # The flag of the config reads the overrides of its fields from here.
  sys.argv, none_fields = config_lib.split_none(argv)
  try:
    rest = flags.FLAGS(sys.argv)
    config_lib.set_none(_CONFIG.value, none_fields)
  except SystemExit:
    if any(arg.lstrip('-').startswith('help') for arg in argv):
      sys.exit(0)  # absl would exit with 1.
    sys.exit(_fail('The config file ended the program.'))
  except Exception as error:  # A config file may raise anything.
    sys.exit(_fail(config_lib.explain(error)))
  if len(rest) > 1:
    sys.exit(_fail(f'{rest[1]!r} is not a flag; flags begin with --.'))
  return rest


def main(argv: list[str]) -> int:
  del argv
  # Until training handles it, Ctrl-C ends the program at once.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  if _WORKDIR.value == '':
    return _fail("--workdir='' is no folder: leave it out, or name one.")
  # Imports that take seconds come after the flags are known to be good.
  from resnet.output import outlive_terminal
  from resnet.run.signals import leave

  outlive_terminal()
  echoes = _Echoes()
  cluster = None

  def fail(error: Exception, code: int) -> int:
    echoes.end()
    if cluster:  # The others would wait for this process to take part.
      cluster.fail(str(error), code)
      leave(_fail(str(error), code))
    return _fail(str(error), code)

  try:
    cluster = _join()
    code = _run(cluster)
    if (cluster and not cluster.close(code)) or code > 128:
      # JAX would wait for processes that are gone. Or a signal, and all is
      # saved: a later size may still be compiled for.
      leave(code)
    return code
  except InputError as error:
    return fail(error, 2)
  # After a failed save, Orbax's threads would keep the process for ever.
  except RunError as error:
    leave(fail(error, 1))
  except Exception as error:
    if getattr(error, 'errno', None) in _DISK_ERRORS:
      leave(fail(error, 1))
    if cluster:
      cluster.wait_for_news()
      cluster.fail(repr(error), 1)
    traceback.print_exc()
    leave(1)


def _join() -> Any:
  """Returns the cluster of several processes; None: there is one."""
  from resnet.run import cluster

  options = cluster.Options(
    coordinator_address=_COORDINATOR_ADDRESS.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    required=bool(_DISTRIBUTED.value),
    join_seconds=_JOIN_SECONDS.value,
    heartbeat_seconds=_HEARTBEAT_SECONDS.value,
  )
  return None if _DISTRIBUTED.value is False else cluster.join(options)


def _run(cluster: Any) -> int:
  """Does what the flags ask for; returns the exit code."""
  import jax

  from resnet import experiment
  from resnet.run import replay
  from resnet.run import run as run_lib
  from resnet.run.compilation_cache import keep_programs
  from resnet.run.evaluate_checkpoint import evaluate_checkpoint
  from resnet.run.provenance import code_hash
  from resnet.run.reference import read_reference

  jax.monitoring.record_event('/resnet/imported')
  if _KEEP_PROGRAMS.value and (problem := keep_programs()):
    print(f'warning: {problem}', file=sys.stderr)
  workdir = _WORKDIR.value
  if workdir is None:
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    workdir = config_lib.default_workdir(path)
  # A shell leaves ~ as it is in --workdir=~/runs.
  workdir = os.path.expanduser(workdir)
  reference = None
  if _REFERENCE.value is not None:
    reference = read_reference(os.path.expanduser(_REFERENCE.value))
  if reference and _MODE.value != 'train':
    raise InputError(
      f'--reference is for training: leave it out of --mode={_MODE.value}.'
    )
  run = experiment.resolve(_CONFIG.value)
  if cluster:
    cluster.agree(
      {
        **run.facts(),
        '--mode': _MODE.value,
        '--checkpoint': _CHECKPOINT.value,
        'code': code_hash(),
      }
    )
  if _MODE.value == 'eval':
    return evaluate_checkpoint(run, workdir, _CHECKPOINT.value)
  if _MODE.value == 'replay':
    if cluster:
      raise InputError('--mode=replay is for one process.')
    return replay.run(run, workdir, _REPLAY_STEP.value)
  return run_lib.run(
    run,
    workdir,
    start_time=_START_TIME,
    reference=reference,
    allow_config_change=_ALLOW_CONFIG_CHANGE.value,
    on_leave=cluster.fail if cluster else None,
    draw=_draw_curves,
  )


def _draw_curves(workdir: str) -> None:
  # Imported at the end: training need not wait for matplotlib.
  from resnet.plots.curves import save_curves

  save_curves(workdir)


if __name__ == '__main__':
  sys.argv = config_lib.with_saved(config_lib.with_default(sys.argv))
  app.run(main, flags_parser=_parse_flags)
