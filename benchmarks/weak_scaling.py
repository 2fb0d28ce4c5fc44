"""What a step costs the host, for 1 to 8 processes.

  PYTHONPATH=. python benchmarks/weak_scaling.py

Each process has one virtual device and 16 images of 8 pixels a step, and runs
the loop of `main.py`: input, dispatch, agreement on signals, reading metrics,
a log line every 10 steps, no evaluation and no save. Shown is the CPU time of
the main thread of process 0 from the first step to the last, by step: what the
devices, and processes that share the cores, take does not count.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax

from configs import fake
from resnet import experiment
from resnet.training import cluster as cluster_lib
from resnet.training import loop, run

_STEPS, _IMAGES = 120, 16


def _train(count, index, port, workdir):
  """Runs one process; process 0 prints seconds of CPU time a step."""
  cluster = cluster_lib.join(
    cluster_lib.Options(
      coordinator_address=f'127.0.0.1:{port}',
      num_processes=count,
      process_id=index,
      required=False,
      join_seconds=300,
      heartbeat_seconds=300,
    )
  )
  config = fake.get_config()
  config.data.image_size = config.data.eval_resize = 8
  config.batch_size = _IMAGES * count
  config.num_epochs = _STEPS * config.batch_size / 512
  config.log_every_steps = 10
  config.eval_every_epochs = config.num_epochs
  config.save_every_steps = _STEPS
  config.schedule.decay_epochs = ()
  start = 0.0

  class Timed(loop.Loop):
    def first(self, *args):
      nonlocal start
      result = super().first(*args)
      start = time.thread_time()
      return result

    def evaluate(self, state, step):  # At the last step.
      seconds = time.thread_time() - start
      if jax.process_index() == 0:
        print('seconds', seconds / (_STEPS - 1))
      return super().evaluate(state, step)

  with mock.patch.object(run, 'Loop', Timed):
    run.train(experiment.resolve(config), workdir, start_time=time.time())
  if cluster:
    cluster.close()


def _measure(count):
  """Returns seconds of CPU time a step of process 0 among `count`."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  with tempfile.TemporaryDirectory() as workdir:
    processes = [
      subprocess.Popen(
        [
          *(sys.executable, __file__, f'--count={count}', f'--index={index}'),
          *(f'--port={port}', f'--workdir={workdir}'),
        ],
        env={
          **os.environ,
          'JAX_PLATFORMS': 'cpu',
          'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
        },
        stdout=subprocess.PIPE,
        text=True,
      )
      for index in range(count)
    ]
    outputs = [process.communicate()[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    if process.returncode:
      sys.exit(output)
  (line,) = [x for x in outputs[0].splitlines() if x.startswith('seconds ')]
  return float(line.split()[1])


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--count', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--index', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--port', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--workdir', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.count:
    _train(args.count, args.index, args.port, args.workdir)
    return
  print(f'{os.cpu_count()} cores, jax {jax.__version__}')
  seconds = {n: [] for n in (1, 2, 4, 8)}
  for _ in range(args.repeats):
    for count, values in seconds.items():
      values.append(_measure(count))
  first = statistics.median(seconds[1])
  for count, values in seconds.items():
    median = statistics.median(values)
    print(
      f'{count} processes: {1000 * median:.2f} ms of host time a step,'
      f' {median / first:.2f} times that of one'
      f' ({", ".join(f"{1000 * value:.2f}" for value in values)})'
    )


if __name__ == '__main__':
  main()
