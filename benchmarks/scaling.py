"""Estimates ResNet-50 on TPU slices of 8 to 4,096 chips, and what feeds them.

  PYTHONPATH=. python benchmarks/scaling.py --out=docs/results/scaling

Needs `pip install 'jax[tpu]'` but no TPU. Compiles the update for each slice
and batch, some minutes each, and writes results.json after each; the same
command continues, and `--draw` only writes the tables and the figure anew.
Nothing runs on a TPU: `resnet.tools.aot.estimate` says how a step is estimated.
"""

import json
import os

import jax

from configs import resnet50
from resnet.errors import InputError
from resnet.files import write_atomically
from resnet.plots import figures
from resnet.tools import command
from resnet.tools.aot import compiled, estimate, topologies
from resnet.tools.aot.compiled import OutOfMemoryError

_TOPOLOGIES = ('v5e:2x4', 'v5e:8x8', 'v5e:16x16', 'v5p:8x8x16', 'v5p:16x16x16')
_BATCHES = (64, 256)
# By chip: its share of a machine's vCPUs and of its network, bytes per second
# (docs.cloud.google.com/tpu/docs/v5e and v5p). A machine has four chips, but
# v5e:2x4 is one of eight.
_HOSTS = {'v5e': (28, 25e9 / 8), 'v5p': (52, 50e9 / 8)}
# ImageNet: photographs, and bytes of all of them (the train file, 138 GiB).
_IMAGES, _BYTES = 1_281_167, 138 * 2**30
# Photographs that a vCPU decodes and crops per second (docs/input.md).
_IMAGES_PER_CORE = 1_214
# What Cloud Storage delivers to a project in a region before one asks for more
# (docs.cloud.google.com/storage/quotas).
_STORE_BYTES = 200e9 / 8


def measure(name, per_chip):
  """Compiles the update and returns its figures and the estimate."""
  topology = topologies.open_topology(name)
  count = len(topology.devices)
  config = resnet50.get_config()
  config.batch_size = per_chip * count
  run = compiled.prepare(config, topology)
  try:
    _, train = compiled.build_subject(run, 'step')
  except OutOfMemoryError as error:
    return {'needed_bytes': error.needed_bytes, 'hbm_bytes': error.hbm_bytes}
  leaves = jax.tree.leaves(run.abstract_state())
  return {
    'chips': count,
    'hbm_bytes': topology.chip.hbm_bytes,
    'state_bytes': sum(x.size * x.dtype.itemsize for x in leaves),
    'train': train._asdict(),
    'estimate': estimate.speed(topology, train, per_chip),
  }


def host(name, point):
  """Returns what a machine must read and decode, and what all read at once."""
  cores, network = _HOSTS[name.partition(':')[0]]
  chips = 8 if name == 'v5e:2x4' else 4
  total = point['estimate']['images_per_second']
  rate = total / point['chips'] * chips
  return {
    'machines': point['chips'] // chips,
    'images_per_second': rate,
    'cores': rate / _IMAGES_PER_CORE,
    'cores_of': cores * chips,
    'bytes_per_second': rate * _BYTES / _IMAGES,
    'network_bytes_per_second': network * chips,
    'epoch_bytes': _BYTES / (point['chips'] // chips),
    'epoch_seconds': _IMAGES / total,
    'all_bytes_per_second': total * _BYTES / _IMAGES,
    'efficiency_from_store': min(
      1.0, _STORE_BYTES / (total * _BYTES / _IMAGES)
    ),
  }


def tables(points):
  """Returns the tables of one chip and of one machine, as Markdown."""
  chips = [
    (
      *('slice', 'chips', 'images a chip', 'memory, GB', 'traffic, GB'),
      *('TFLOP', 'all-reduces', 'arithmetic / memory / all-reduces, ms'),
      *('ESTIMATE: step, ms', 'images/s', 'efficiency, %', 'compiled in, s'),
    )
  ]
  hosts = [
    (
      *('slice', 'images a chip', 'machines', 'images/s', 'vCPUs to decode'),
      *('GB/s of the network', 'GB an epoch', 'seconds an epoch'),
      *('GB/s of all machines', 'efficiency from one store, %'),
    )
  ]
  for key, point in points.items():
    name, per_chip = key.split()
    if 'train' not in point:
      needed, hbm = point['needed_bytes'] / 1e9, point['hbm_bytes'] / 1e9
      text = f'does not fit: {needed:.1f} of {hbm:.1f} GB'
      chips.append((name, '', per_chip, text, *[''] * (len(chips[0]) - 4)))
      continue
    train, found, machine = point['train'], point['estimate'], host(name, point)
    rows = train['collectives']
    times = ' / '.join(f'{1e3 * x:.2f}' for x in found['seconds'].values())
    chips.append(
      (
        *(name, f'{point["chips"]:,}', per_chip),
        f'{train["peak_bytes"] / 1e9:.2f} of {point["hbm_bytes"] / 1e9:.1f}',
        f'{train["accessed_bytes"] / 1e9:.1f}',
        f'{train["flops"] / 1e12:.3f}',
        f'{sum(row["count"] for row in rows)} of'
        f' {sum(row["bytes"] for row in rows) / 1e6:.1f} MB',
        times,
        f'{1e3 * found["step_seconds"]:.2f}',
        f'{found["images_per_second"]:,.0f}',
        f'{100 * found["efficiency"]:.1f}',
        f'{train["seconds"]:.0f}',
      )
    )
    hosts.append(
      (
        *(name, per_chip, f'{machine["machines"]:,}'),
        f'{machine["images_per_second"]:,.0f}',
        f'{machine["cores"]:.0f} of {machine["cores_of"]}',
        f'{machine["bytes_per_second"] / 1e9:.2f} of'
        f' {machine["network_bytes_per_second"] / 1e9:.1f}',
        f'{machine["epoch_bytes"] / 1e9:.2f}',
        f'{machine["epoch_seconds"]:.2f}',
        f'{machine["all_bytes_per_second"] / 1e9:,.1f}',
        f'{100 * machine["efficiency_from_store"]:.0f}',
      )
    )
  return '\n\n'.join(command.table(x, markdown=True) for x in (chips, hosts))


def draw(points, path):
  """Draws the efficiency and the bytes per second against the chips."""
  figure, (left, right) = figures.create(
    ['Chips at work', 'Photographs, read by all machines'],
    title='ResNet-50 on slices of TPUs: estimates, nothing was run',
    note='Compiled for each slice; peak figures of the maker.',
  )
  style = 0
  for chip in _HOSTS:
    for per_chip in _BATCHES:
      found = [
        point
        for key, point in points.items()
        if key.startswith(chip) and key.endswith(f' {per_chip}')
        if 'train' in point
      ]
      if found:
        count = [point['chips'] for point in found]
        share = [100 * point['estimate']['efficiency'] for point in found]
        rates = [point['estimate']['images_per_second'] for point in found]
        label = f'{chip}, {per_chip} images a chip'
        figures.draw_curve(left, count, share, style=style, label=label)
        gigabytes = [rate * _BYTES / _IMAGES / 1e9 for rate in rates]
        figures.draw_curve(right, count, gigabytes, style=style, label=label)
        style += 1
  left.axhline(90, color='grey', linewidth=0.8)
  left.set(ylim=(80, 100), ylabel='step without all-reduces / step, %')
  right.axhline(_STORE_BYTES / 1e9, color='grey', linewidth=0.8)
  right.text(4096, 0.8 * _STORE_BYTES / 1e9, 'one store', ha='right', va='top')
  right.set(yscale='log', ylabel='GB/s')
  for ax in (left, right):
    ax.set(xscale='log', xlabel='chips')
    ticks = sorted(
      {point['chips'] for point in points.values() if 'train' in point}
    )
    ax.set_xticks(ticks, [f'{count:,}' for count in ticks])
    ax.minorticks_off()
    ax.legend()
  for kind in ('png', 'svg'):
    figures.save(figure, f'{path}.{kind}')


def main(args):
  """Measures what is missing, then writes the tables and the figure."""
  os.makedirs(args.out, exist_ok=True)
  path = os.path.join(args.out, 'results.json')
  points = {}
  if os.path.exists(path):
    with open(path) as file:
      points = json.load(file)['points']
  elif args.draw:
    raise InputError(f'{path} does not exist; leave out --draw.')
  wanted = [f'{name} {n}' for name in _TOPOLOGIES for n in _BATCHES]
  for key in args.only or wanted:
    if key not in points and not args.draw:
      name, per_chip = key.split()
      print(f'compiling {key} images a chip', flush=True)
      points[key] = measure(name, int(per_chip))
      points = {key: points[key] for key in wanted if key in points}
      text = json.dumps({'jax': jax.__version__, 'points': points}, indent=2)
      write_atomically(path, text + '\n')
  (doc, usage, *_) = __doc__.split('\n\n')
  text = f'# Scaling\n\n{doc}\n\n```bash\n{usage.strip()}\n```\n\n'
  write_atomically(
    os.path.join(args.out, 'results.md'), f'{text}{tables(points)}\n'
  )
  draw(points, os.path.join(args.out, 'figure'))
  print(tables(points))


def parser():
  result = command.Parser(doc=__doc__, prog='benchmarks/scaling.py')
  result.add_argument('--out', required=True, metavar='DIR')
  result.add_argument('--draw', action='store_true', help='compile nothing')
  result.add_argument(
    '--only', nargs='+', metavar="'SLICE N'", help="such as 'v5e:2x4 64'"
  )
  return result


if __name__ == '__main__':
  command.run(main, parser())
