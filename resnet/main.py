"""Trains or evaluates a residual network.

  python main.py --config=configs/resnet50.py --workdir=runs/resnet50
  python main.py --workdir=runs/digits --mode=eval

Each field of the config is a flag too: --config.batch_size=512. The command
resnet-train of the installed package takes the same flags.
"""

import os
import sys
import time
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from resnet import config as config_lib
from resnet.errors import InputError
from resnet.output import print_error, run_to_exit

_START_TIME = time.time()

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  help_string='Config file; its fields are flags too: --config.batch_size=512.'
  ' Default: configs/digits.py.',
)
flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the run, created if missing; a run in it is resumed.'
  ' Default: runs/<config name>.',
)
flags.DEFINE_enum(
  'mode',
  'train',
  ['train', 'eval', 'replay'],
  'Train, evaluate a checkpoint, or repeat a step with non-finite values.',
)
flags.DEFINE_enum(
  'checkpoint',
  'best',
  ['best', 'latest'],
  'Checkpoint for --mode=eval: the best by eval top-1, or the latest.',
)
flags.DEFINE_bool(
  'allow_config_change',
  False,
  'Resume with changed fields for logging, checkpoints or error tolerance.',
)
flags.DEFINE_integer(
  'replay_step',
  None,
  'Step for --mode=replay. Default: the last with non-finite values.',
)
flags.DEFINE_string(
  'reference',
  None,
  'Band file from resnet.tools.reference: warn when the run leaves the band.',
)
flags.DEFINE_bool(
  'keep_programs',
  True,
  'Keep compiled programs for later runs, in $JAX_COMPILATION_CACHE_DIR or in'
  ' ~/.cache/resnet.',
)
flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT of process 0, if processes are started by hand.',
)
flags.DEFINE_integer('num_processes', None, 'Number of processes of the run.')
flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
flags.DEFINE_bool(
  'distributed',
  None,
  'Whether this is one of several processes on a TPU pod, Slurm or GKE.'
  ' Default: detected; with --distributed, it is an error to find no cluster.',
)
flags.DEFINE_integer(
  'join_seconds',
  300,
  'Seconds to wait for missing processes.',
  lower_bound=1,
)
flags.DEFINE_integer(
  'heartbeat_seconds',
  60,
  'Seconds without a heartbeat after which a process counts as dead.',
  lower_bound=1,
)

FLAGS = flags.FLAGS
_OF_CLUSTERS = (
  *('coordinator_address', 'distributed', 'heartbeat_seconds'),
  *('join_seconds', 'num_processes', 'process_id'),
)


def _print_help() -> None:
  for flag in FLAGS.get_key_flags_for_module(__name__):
    group = 'several processes' if flag.name in _OF_CLUSTERS else 'run'
    FLAGS.register_key_flag_for_module(group, flag)
  print(__doc__)
  for group in ('run', 'several processes'):
    # The default of --config is in its description.
    text = FLAGS.module_help(group).replace("    (default: 'None')\n", '')
    print(text.removeprefix('\n'), end='\n\n')


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; an error in it ends the program."""
  if {'--help', '-help', '-h'} & set(argv):
    _print_help()
    sys.exit(0)
  # The --config flag reads overrides of fields from sys.argv.
  sys.argv, none_fields = config_lib.split_none(argv)
  try:
    rest = FLAGS(sys.argv)
    config_lib.set_none(_CONFIG.value, none_fields)
  except SystemExit:
    if any(arg.lstrip('-').startswith('help') for arg in argv):
      sys.exit(0)  # absl would exit with 1.
    sys.exit(print_error('The config file called sys.exit.'))
  except Exception as error:  # A config file may raise anything.
    sys.exit(print_error(config_lib.explain(error)))
  if len(rest) > 1:
    sys.exit(print_error(f'{rest[1]!r} is not a flag; flags begin with --.'))
  return rest


def main(_: list[str]) -> int:
  """Trains, evaluates or replays; returns the exit code."""
  if FLAGS.workdir == '':
    return print_error("--workdir='' is not a folder: type --workdir=DIR.")
  return run_to_exit(_join, _run)


# Slow imports wait until the flags have been checked.
def _join() -> Any:
  """Returns the cluster, or None if there is one process."""
  from resnet.run import cluster

  if FLAGS.distributed is False:
    return None
  return cluster.join(
    FLAGS.coordinator_address,
    FLAGS.num_processes,
    FLAGS.process_id,
    required=bool(FLAGS.distributed),
    join_seconds=FLAGS.join_seconds,
    heartbeat_seconds=FLAGS.heartbeat_seconds,
  )


def _run(cluster: Any) -> int:
  """Trains, evaluates or replays in an initialised process."""
  import jax

  from resnet import experiment
  from resnet.run import bad_steps, compilation_cache, initialize, reference
  from resnet.run import run as run_lib

  jax.monitoring.record_event('/resnet/imported')
  if FLAGS.keep_programs and (problem := compilation_cache.keep_programs()):
    print(f'warning: {problem}', file=sys.stderr)
  path = config_flags.get_config_filename(FLAGS['config'])
  workdir = FLAGS.workdir or config_lib.default_workdir(path)
  workdir = os.path.expanduser(workdir)  # Shells keep the ~ of --workdir=~/a.
  band = None
  if FLAGS.reference is not None:
    band = reference.read_reference(
      config_lib.find(os.path.expanduser(FLAGS.reference))
    )
  if band and FLAGS.mode != 'train':
    raise InputError(f'--reference needs --mode=train, not {FLAGS.mode}.')
  run = experiment.resolve(FLAGS.config)
  if cluster:
    flag_facts = {'--mode': FLAGS.mode, '--checkpoint': FLAGS.checkpoint}
    cluster.agree({**run.facts(), **flag_facts})
  if FLAGS.mode == 'eval':
    return initialize.evaluate_checkpoint(run, workdir, FLAGS.checkpoint)
  if FLAGS.mode == 'replay':
    return bad_steps.replay(run, workdir, FLAGS.replay_step)
  return run_lib.run(
    run,
    workdir,
    start_time=_START_TIME,
    reference=band,
    allow_config_change=FLAGS.allow_config_change,
    on_leave=cluster.fail if cluster else None,
    draw=_draw_curves,
  )


def _draw_curves(workdir: str) -> None:
  # Imported late, so that training does not wait for matplotlib.
  from resnet.plots.curves import save_curves

  save_curves(workdir)


def run() -> None:
  """Runs main.py and the command resnet-train."""
  sys.argv = config_lib.with_file(sys.argv)
  app.run(main, flags_parser=_parse_flags)
