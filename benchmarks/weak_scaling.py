"""Measures the CPU time of the host per step for 1 to 8 processes.

  PYTHONPATH=. python benchmarks/weak_scaling.py

Each process has one virtual device and 16 images per step, crops of 32x32
pixels from JPEG files of 500x375. It runs the loop of `main.py`: input,
dispatch, agreement on signals, reading metrics, and a log line every 10 steps,
without evaluations and saves. Prints the CPU time per step of process 0, for
the thread that makes batches ("input") and for the main thread ("loop"). The
time of devices and of other processes does not count. Batch statistics stay on
a device.
"""

import argparse
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import cv2
import jax
import numpy as np

from configs import fake
from resnet import experiment
from resnet.data.host import reader
from resnet.run import cluster as cluster_lib
from resnet.run import loop, run

_STEPS, _IMAGES, _FILES = 60, 16, 160


def _make_files(folder):
  """Writes JPEG files as large as ImageNet's, in pixels and bytes."""
  rng = np.random.default_rng(0)
  for split in ('train', 'val'):
    for i in range(_FILES):
      coarse = rng.integers(0, 256, (94, 125, 3), np.uint8)
      image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
      place = pathlib.Path(folder, split, str(i % 2))
      place.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(place / f'{i:03}.jpg'), image)


def _train(count, index, port, folder):
  """Runs one process; process 0 prints seconds of CPU time per step."""
  cluster = cluster_lib.join(
    f'127.0.0.1:{port}',
    count,
    index,
    required=False,
    join_seconds=300,
    heartbeat_seconds=300,
  )
  config = fake.get_config()
  config.data.name, config.data.eval_split = 'folder', 'val'
  config.data.data_dir = os.path.join(folder, 'images')
  config.data.crop = 'random_resized'
  config.data.image_size = config.data.eval_resize = 32
  config.data.mean = config.data.std = (127.5,) * 3
  config.batch_size = _IMAGES * count
  config.num_epochs = _STEPS * config.batch_size / _FILES
  config.log_every_steps = 10
  config.eval_every_epochs = config.num_epochs
  config.save_every_steps = _STEPS
  config.schedule.decay_epochs = ()
  config.model.bn_group_size = _IMAGES
  workdir = os.path.join(folder, 'run')
  start, input_seconds = 0.0, []
  read = reader.BatchReader.__call__

  def timed_read(*args):
    begin = time.thread_time()
    try:
      return read(*args)
    finally:
      input_seconds.append(time.thread_time() - begin)

  class Timed(loop.Loop):
    def run_first_step(self, *args):
      nonlocal start
      result = super().run_first_step(*args)
      start = time.thread_time()
      return result

    def evaluate(self, state, step):  # At the last step.
      seconds = time.thread_time() - start
      if jax.process_index() == 0:
        made = statistics.median(input_seconds)
        print('seconds', seconds / (_STEPS - 1), made)
      return super().evaluate(state, step)

  with (
    mock.patch.object(run, 'Loop', Timed),
    mock.patch.object(reader.BatchReader, '__call__', timed_read),
  ):
    run.train(experiment.resolve(config), workdir, start_time=time.time())
  if cluster:
    cluster.close(0)


def _measure(count, images):
  """Returns seconds of CPU time per step of process 0 of `count`.

  Those of its main thread, and of the threads that make batches.
  """
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  with tempfile.TemporaryDirectory() as folder:
    os.symlink(images, os.path.join(folder, 'images'))
    processes = [
      subprocess.Popen(
        [
          *(sys.executable, __file__, f'--count={count}', f'--index={index}'),
          *(f'--port={port}', f'--folder={folder}'),
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
  return tuple(map(float, line.split()[1:]))


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--counts', type=int, nargs='*', default=[1, 2, 4, 8])
  parser.add_argument('--count', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--index', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--port', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.count:
    _train(args.count, args.index, args.port, args.folder)
    return
  print(f'{os.cpu_count()} cores, jax {jax.__version__}', flush=True)
  found = {n: [] for n in args.counts}
  with tempfile.TemporaryDirectory() as images:
    _make_files(images)
    for i in range(args.repeats):
      for count, values in found.items():
        values.append(_measure(count, images))
        loop_ms, input_ms = (1000 * value for value in values[-1])
        print(
          f'round {i + 1}, {count} processes: loop {loop_ms:.2f} ms, input'
          f' {input_ms:.2f} ms',
          flush=True,
        )
  totals = {
    count: statistics.median(map(sum, values))
    for count, values in found.items()
  }
  for count, total in totals.items():
    print(
      f'{count} processes: {1000 * total:.2f} ms of host time per step,'
      f' {total / totals[args.counts[0]]:.2f} times that of {args.counts[0]}'
    )


if __name__ == '__main__':
  main()
