"""Measures a server with and without batching, and the predict tool.

  PYTHONPATH=. python benchmarks/serving.py --out=DIR

ResNet-18 at 224 pixels, random weights, JPEG images of 256 x 256. Three times
in turn: 64 concurrent clients of a server that predicts one image at a time
(the baseline), the same clients of a server that batches, and the predict tool
on as many files, each in its own process on this machine. Then sends --requests
requests to a batching server and measures its memory before and after. Prints
medians and ratios in Markdown and writes results.json.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from resnet import weights
from resnet.models import create_model
from resnet.run.provenance import commit, hardware

_ROOT = pathlib.Path(__file__).parents[1]
_CLIENTS = 64
_SERVERS = {'one by one': 1, 'batched': 16}


def _write_weights(path):
  model = create_model('resnet18')
  images = jnp.zeros((1, 64, 64, 3))
  variables = jax.jit(lambda key: model.init(key, images, train=False))(
    jax.random.key(0)
  )
  preprocessing = weights.Preprocessing(
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    image_size=224,
    crop_share=0.875,
    interpolation='bilinear',
  )
  metadata = weights.Metadata(model='resnet18', preprocessing=preprocessing)
  weights.save_weights(
    jax.tree.map(np.asarray, dict(variables)), path, metadata=metadata
  )


def _write_images(folder, count):
  rng = np.random.default_rng(0)
  folder.mkdir()
  for i in range(count):
    coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
    pixels = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / f'{i:04}.jpg'), pixels)


class _Server:
  def __init__(self, path, max_batch):
    self.process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'resnet.tools.serve', f'--weights={path}'),
        *('--port=0', f'--max-batch={max_batch}'),
      ],
      cwd=_ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.port = int(self.process.stdout.readline().rpartition(':')[2])

  def ask_all(self, bodies):
    """Returns the seconds that 64 clients need, and the statuses."""
    start = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as pool:
      statuses = list(
        pool.map(self._ask_some, [bodies[i::_CLIENTS] for i in range(_CLIENTS)])
      )
    return time.perf_counter() - start, [s for some in statuses for s in some]

  def _ask_some(self, bodies):
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=600)
    statuses = []
    for body in bodies:
      connection.request(
        'POST', '/predict', body, {'Content-Type': 'image/jpeg'}
      )
      response = connection.getresponse()
      response.read()
      statuses.append(response.status)
    connection.close()
    return statuses

  def memory(self):
    """Returns resident bytes."""
    status = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
    (line,) = [x for x in status.splitlines() if x.startswith('VmRSS')]
    return 1024 * int(line.split()[1])

  def stop(self):
    self.process.terminate()
    self.process.wait(60)


def _predict_rate(path, folder, count):
  """Returns images/s of the predict tool without its start-up.

  A run on one image measures the start-up.
  """
  first = sorted(folder.iterdir())[0]
  seconds = []
  for target in (first, folder):
    start = time.perf_counter()
    subprocess.run(
      [
        *(sys.executable, '-m', 'resnet.tools.predict', str(target)),
        *(f'--weights={path}', '--batch-size=16', '--num-threads=2'),
      ],
      cwd=_ROOT,
      check=True,
      stdout=subprocess.DEVNULL,
    )
    seconds.append(time.perf_counter() - start)
  return (count - 1) / (seconds[1] - seconds[0])


def _throughput(path, folder, bodies):
  rates = {**{name: [] for name in _SERVERS}, 'predict': []}
  servers = {name: _Server(path, size) for name, size in _SERVERS.items()}
  for _ in range(3):
    for name, server in servers.items():
      seconds, statuses = server.ask_all(bodies)
      assert statuses == [200] * len(bodies)
      rates[name].append(len(bodies) / seconds)
    rates['predict'].append(_predict_rate(path, folder, len(bodies)))
  for server in servers.values():
    server.stop()
  return {name: statistics.median(values) for name, values in rates.items()}


def _endurance(path, bodies, count):
  server = _Server(path, 16)
  server.ask_all(bodies)
  before = server.memory()
  many = (bodies * (count // len(bodies) + 1))[:count]
  _, statuses = server.ask_all(many)
  after = server.memory()
  server.stop()
  return {
    'requests': count,
    'answered': statuses.count(200),
    'memory_before_bytes': before,
    'memory_after_bytes': after,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', required=True)
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--requests', type=int, default=10_000)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    path = os.path.join(scratch, 'resnet18.safetensors')
    folder = pathlib.Path(scratch) / 'images'
    _write_weights(path)
    _write_images(folder, args.images)
    bodies = [file.read_bytes() for file in sorted(folder.iterdir())]
    rates = _throughput(path, folder, bodies)
    endurance = _endurance(path, bodies, args.requests)
  print('| | images/s | ratio |\n|---|---|---|')
  for name, rate in rates.items():
    print(f'| {name} | {rate:.1f} | {rate / rates["one by one"]:.2f} |')
  print(endurance)
  os.makedirs(args.out, exist_ok=True)
  record = {
    'images_per_second': rates,
    'endurance': endurance,
    'commit': commit(),
    'hardware': hardware(jax.devices()),
  }
  with open(os.path.join(args.out, 'results.json'), 'w') as file:
    json.dump(record, file, indent=2)


if __name__ == '__main__':
  main()
