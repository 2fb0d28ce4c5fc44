"""Compares the memory traffic of variants of the step, compiled for a TPU.

  PYTHONPATH=. python benchmarks/traffic.py --topology=v5e:2x2 --json=FILE

Needs `pip install 'jax[tpu]'` but no TPU; each variant takes some minutes to
compile. Prints the compiler's figures per image for ResNet-50, bfloat16, 256
images per chip on four chips. `flax` is benchmarks/flax_step.py.
"""

import argparse
import dataclasses
import functools
import json

import jax

from benchmarks import flax_step
from configs import resnet50
from resnet.files import write_atomically
from resnet.tools.aot import compiled, topologies
from resnet.tools.aot.compiled import abstract_batch


def _flax(run):
  state = run.abstract_state()
  batch = abstract_batch(run, 'step')
  state = (state.params, state.batch_stats, state.opt_state)
  return compiled.build(flax_step.jit(run, 'step'), state, batch)[1]


def _changed(run, **fields):
  task = dataclasses.replace(run.task, model=run.task.model.clone(**fields))
  changed = dataclasses.replace(run, task=task)
  return compiled.build_subject(changed, 'step')[1]


_WAYS = {
  'ours': _changed,
  'flax': _flax,
  'ours, remat': functools.partial(_changed, remat=True),
  'ours, 1x1 as matmul': functools.partial(_changed, conv_backend='matmul'),
}


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--topology', default='v5e:2x2')
  parser.add_argument('--batch-size', type=int, default=256, help='per chip')
  parser.add_argument('--ways', nargs='+', default=_WAYS, choices=_WAYS)
  parser.add_argument('--network', default='resnet50')
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args()
  topology = topologies.open_topology(args.topology)
  config = resnet50.get_config()
  config.model.name = args.network
  config.batch_size = args.batch_size * len(topology.devices)
  # Batch norm does not communicate between chips.
  config.model.bn_group_size = args.batch_size
  config.model.dtype = 'bfloat16'
  run = compiled.prepare(config, topology)
  result = {'topology': args.topology, 'jax': jax.__version__}
  for name in args.ways:
    found = _WAYS[name](run)
    result[name] = {
      'gflop_per_image': found.flops / args.batch_size / 1e9,
      'mb_per_image': found.accessed_bytes / args.batch_size / 1e6,
      'temporary_gb': found.temporary_bytes / 1e9,
    }
    print(name, json.dumps(result[name]), flush=True)
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  main()
