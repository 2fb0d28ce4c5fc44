"""Measures variants of parts of the step; see docs/performance.md.

  PYTHONPATH=. python benchmarks/variants.py --batch-size=16 --dtype=float32
  PYTHONPATH=. python benchmarks/variants.py --topology=v5e:2x4 --json=FILE

The first command times ResNet-50 at 224 pixels on this machine, in turn with
our step. The second compiles for an absent TPU and prints the compiler's
figures for a chip; it needs `pip install 'jax[tpu]'` and some minutes per
variant.
"""

import argparse
import dataclasses
import functools
import json
from unittest import mock

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

from configs import resnet50
from resnet.files import write_atomically
from resnet.models import pooling
from resnet.tools.aot import compiled, topologies
from resnet.tools.benchmark import programs, timing
from resnet.training import step


def reduced_gradients(state, batch, task, *, sharding, dtype):
  """Accumulates gradients with an all-reduce of them in `dtype`."""
  axes = sharding.mesh.axis_names

  def local(state, batch):
    grads, batch_stats, sums = _GRADIENTS(state, batch, task)
    grads = jax.tree.map(
      lambda g: lax.pmean(g.astype(dtype), axes).astype(g.dtype), grads
    )
    return grads, lax.pmean(batch_stats, axes), lax.psum(sums, axes)

  whole, split = PartitionSpec(), PartitionSpec(axes)
  return jax.shard_map(
    local,
    mesh=sharding.mesh,
    in_specs=(whole, split),
    out_specs=whole,
    check_vma=False,
  )(state, batch)


_GRADIENTS = step._accumulated_gradients


NAMES = ('ours', 'other max-pool', 'bfloat16 all-reduce', 'flat update')


def build(run, name):
  """Returns the update of a run with variant `name`, and its `Compiled`."""
  task = run.task
  if name == 'other max-pool':
    # That of XLA on CPUs, that of CPUs elsewhere.
    other = 'matmul' if task.model.conv_backend == 'xla' else 'xla'
    model = task.model.clone(
      stem_pool=lambda x, **_: pooling.stem_max_pool(x, backend=other)
    )
    task = dataclasses.replace(task, model=model)
  if name == 'flat update':
    task = dataclasses.replace(task, tx=optax.flatten(task.tx))
  run = dataclasses.replace(run, task=task)
  if name != 'bfloat16 all-reduce':
    return run, *compiled.build_subject(run, 'step')
  reduced = functools.partial(
    reduced_gradients, sharding=run.sharding, dtype=jnp.bfloat16
  )
  with mock.patch.object(step, '_accumulated_gradients', reduced):
    return run, *compiled.build_subject(run, 'step')


def _time(config, rounds):
  """Returns seconds of each in turn, a value a round."""
  run = programs.resolve_here(config)
  measurements = {}
  for name in NAMES:
    changed, update, _ = build(run, name)
    batch = programs.batch_on_device(changed, 'step')
    state = changed.create_state()
    seconds = programs.timed(lambda s, u=update, b=batch: u(s, b), state)
    seconds(1)  # Warm-up.
    measurements[name] = functools.partial(seconds, 1)
  return timing.in_turn(measurements, rounds)


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--topology', help='compile for this TPU instead')
  parser.add_argument('--batch-size', type=int, default=256, help='per chip')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--json', metavar='FILE')
  args = parser.parse_args()
  config = resnet50.get_config()
  config.model.dtype = args.dtype
  config.model.bn_group_size = config.batch_size = args.batch_size
  if args.topology:
    topology = topologies.open_topology(args.topology)
    config.batch_size *= len(topology.devices)
    run = compiled.prepare(config, topology)
    result = {n: build(run, n)[2]._asdict() for n in NAMES}
  else:
    found = _time(config, args.rounds)
    result = {
      name: timing.ratio(found['ours'], seconds)
      for name, seconds in found.items()
    }
  for name, figures in result.items():
    print(f'{name}: {figures}')
  if args.json:
    write_atomically(args.json, json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  main()
